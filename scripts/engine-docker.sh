# check-docker with docker. Sourced. The same functions for another engine: engine-buildah.sh.

container=""

build_image() {
    docker build --tag "$image" .
}

# Prints the image's configuration as JSON.
image_config() {
    docker image inspect --format '{{json .Config}}' "$image"
}

# start_server APP_FILE ARGUMENT...: runs the image in the background, with APP_FILE as /app/app.py. Sets address to
# the host and the port at which it is to be reached.
start_server() {
    local published
    container=$(docker run --detach --publish 127.0.0.1::8000 --volume "$1:/app/app.py:ro" "$image" "${@:2}")
    published=$(docker port "$container" 8000/tcp)
    address=(127.0.0.1 "${published##*:}")
}

# beside_server COMMAND...: runs a program of this machine where the server's address is in reach.
beside_server() {
    "$@"
}

# inside COMMAND...: runs a program of the image in the server's container.
inside() {
    docker exec "$container" "$@"
}

# Prints the server's /proc/PID/status.
server_status() {
    docker exec "$container" cat /proc/1/status
}

# Sends the server SIGTERM, and SIGKILL if that has not ended it in 20 seconds. Returns its exit code.
stop_server() {
    docker stop --time 20 "$container" >/dev/null
    return "$(docker inspect --format '{{.State.ExitCode}}' "$container")"
}

server_log() {
    [[ -z $container ]] || docker logs "$container"
}

clean_up() {
    [[ -z $container ]] || docker rm --force "$container"
    docker rmi --force "$image"
}
