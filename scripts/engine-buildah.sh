# check-docker without an engine: Debian's buildah, as root. Sourced. What its functions are for: engine-docker.sh.
#
# Chroot isolation needs nothing of the machine but root. It shares the machine's process table; the network is a
# namespace of its own with nothing but loopback in it, so that port 8000 is free in there whatever runs here.
# The base image is kept for the next run; all else is removed.

buildah=(buildah --root "$cache/storage" --runroot "$work/run" --storage-driver vfs)
network=check-docker-$$
container=""
runner=""

# Sees to the image that the Dockerfile builds on: from the last run, else from its registry where that is in reach,
# else Debian 12 under the same name, whose Python is 3.11.
ensure_base() {
    local base scratch
    base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)
    if "${buildah[@]}" inspect --type image "$base" >/dev/null || "${buildah[@]}" pull --quiet "$base"; then
        return
    fi
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$work/base"
    rm -rf "$work"/base/var/cache/apt/* "$work"/base/var/lib/apt/lists/*
    scratch=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add --quiet "$scratch" "$work/base" /
    "${buildah[@]}" commit --quiet --rm "$scratch" "$base"
}

# The build's pip is told what this machine's pip knows: its settings, and the certificates to trust.
build_image() {
    local file name options
    ensure_base
    # An image in Docker's format, since OCI's has no health check.
    options=(--isolation chroot --format docker --pull-never --tag "$image")
    for name in $(compgen -e PIP_); do
        options+=(--env "$name")
    done
    for file in /etc/pip.conf "${PIP_CERT:-}" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
        [[ ! -f $file ]] || options+=(--volume "$file:$file:ro")
    done
    for file in .config/pip/pip.conf .pip/pip.conf; do
        [[ ! -f ~/$file ]] || options+=(--volume ~/"$file:/root/$file:ro")
    done
    "${buildah[@]}" build "${options[@]}" .
}

image_config() {
    "${buildah[@]}" inspect --type image "$image" |
        "$bin/python" -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["Docker"]["config"]))'
}

# buildah's run knows no entrypoint, so it is put before the arguments here.
start_server() {
    local entrypoint
    mapfile -t entrypoint < <(image_config | json_strings Entrypoint)
    container=$("${buildah[@]}" from --pull-never "$image")
    ip netns add "$network"
    ip -netns "$network" link set lo up
    run --volume "$1:/app/app.py:ro" "$container" -- "${entrypoint[@]}" "${@:2}" >"$work/log" 2>&1 &
    runner=$!
    address=(127.0.0.1 8000)
}

run() {
    beside_server "${buildah[@]}" run --isolation chroot "$@"
}

beside_server() {
    ip netns exec "$network" "$@"
}

inside() {
    run "$container" -- "$@"
}

# Prints the process id of the server: the last in the line of the runner's child processes. A thread has its own
# list of children.
server_pid() {
    local pid=$runner children
    while children=$(cat "/proc/$pid/task/"*/children) && [[ $children ]]; do
        pid=${children%% *}
    done
    printf '%s' "$pid"
}

server_status() {
    cat "/proc/$(server_pid)/status"
}

stop_server() {
    local pid tenths
    pid=$(server_pid)
    kill -TERM "$pid"
    for ((tenths = 0; tenths < 200; tenths++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$runner"
}

server_log() {
    [[ -z $runner ]] || cat "$work/log"
}

clean_up() {
    if [[ $runner ]] && kill -0 "$runner"; then
        kill -KILL "$(server_pid)"
        wait "$runner"
    fi
    ip netns delete "$network"
    [[ -z $container ]] || "${buildah[@]}" rm "$container"
    "${buildah[@]}" rmi "$image"
}
