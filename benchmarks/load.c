/*
 * The load on a WebSocket server at 127.0.0.1: one thread, one epoll, frames prepared beforehand.
 *
 *   load MODE PORT CONNECTIONS IN_FLIGHT WARM_UP SECONDS RATE <PREPARED
 *
 * echo       every connection keeps IN_FLIGHT messages under way: for each that comes back, it sends the next
 * rate       RATE messages a second are sent, on each connection in turn, whatever comes back when
 * fan-out    the first connection sends IN_FLIGHT messages, which every connection is to receive; then the next
 * connect    CONNECTIONS times at a time: connect, have a message echoed, close as RFC 6455 section 7 has it
 * idle       every connection has one message echoed, and stays open until this process is ended
 * keepalive  no connection sends a message, and the server's pings are what counts
 *
 * Pings are answered in each of them.
 *
 * PREPARED is a sequence of blocks, each of them its length in 4 bytes, little-endian, and so many bytes: the request
 * of the opening handshake; what its response must hold, in any case (where that is not empty, messages must come
 * back compressed); a close frame; and the frames to send in turn, masked. Of what is received, only the headers of
 * frames are looked at: messages are counted by their final frames.
 *
 * Prints "begin" when the warm-up is over (idle: when all is echoed), and at the end a line of JSON: messages received
 * (connect: connections closed; keepalive: pings), the seconds that this took, and the seconds of CPU time that it took
 * here. In rate, also the latencies that 50 and 99 % of the messages did not exceed, in seconds, counted from when each
 * was due.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HEAD = 4096, READ_SIZE = 1 << 18, MAX_EVENTS = 256 };
enum { MAX_OPENING = 32 }; /* connections at a time: the smallest backlog of a server here is 100 */
enum { FIN = 0x80, RSV1 = 0x40, OPCODE = 0x0f, CONTROL = 0x08 }; /* RFC 6455 section 5.2 */
enum { CLOSE = 0x08, PING = 0x09, PONG = 0x0a };
enum { MASKED = 0x80, MASKED_HEADER = 6, MAX_CONTROL = 125 }; /* section 5.5 */
enum mode { ECHO, RATE, FAN_OUT, CONNECT, IDLE, KEEPALIVE };

static const double OPENING_TIMEOUT = 30; /* seconds without any progress */
static const char *const MODES[] = {"echo", "rate", "fan-out", "connect", "idle", "keepalive"};

struct block {
    unsigned char *bytes;
    size_t size;
};

struct connection {
    int fd;
    bool open, closing, awaits_writable;
    const unsigned char *control; /* what is being sent: the request or a control frame, or NULL: the frames in turn */
    size_t to_send;               /* bytes of that */
    const struct block *block;    /* due after that: the request or the close frame, or NULL */
    bool pong_due;                /* due after that, too */
    size_t frames_due;            /* and so many of the frames in turn */
    size_t position, next_frame;  /* in the ring: of the next byte to send, of the next frame to send */
    unsigned char ping[MAX_CONTROL], pong[MASKED_HEADER + MAX_CONTROL];
    size_t ping_size;             /* bytes of its payload that have been received */
    char head[MAX_HEAD + 1];      /* of the response, while it is not complete */
    unsigned char header[10];     /* of the frame that is being received */
    size_t filled;                /* bytes of head, then of header */
    bool in_payload;
    uint64_t payload_left;
};

static enum mode mode;
static uint16_t port;
static size_t connection_count, in_flight;
static double rate;

static struct block request, expected, close_frame;
static struct block ring; /* all frames, twice over, so that any run of them is in one piece */
static size_t ring_size, frame_count, *frame_sizes;

static int epoll_fd;
static struct connection *connections;
static size_t opening, opened, received;
static bool measuring;
static uint64_t counted;

static double started_at, window_start;

/* In rate: how many messages were sent in all, and for each connection, how many have come back. */
static uint64_t sent_in_all, *returned;
static double *latencies;
static size_t latency_count, latency_capacity;

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void *resize(void *memory, size_t count, size_t size)
{
    memory = realloc(memory, count * size);
    if (!memory)
        die("no memory for %zu times %zu bytes", count, size);
    return memory;
}

static double seconds_of(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Reads the next block, and puts a NUL behind it; returns whether there is one. */
static bool read_block(struct block *block)
{
    unsigned char length[4];
    if (fread(length, 1, 4, stdin) != 4)
        return false;
    block->size = (size_t)length[0] | (size_t)length[1] << 8 | (size_t)length[2] << 16 | (size_t)length[3] << 24;
    block->bytes = resize(NULL, block->size + 1, 1);
    block->bytes[block->size] = '\0';
    if (fread(block->bytes, 1, block->size, stdin) != block->size)
        die("standard input ends within a block");
    return true;
}

static void read_prepared(void)
{
    struct block frame;
    if (!read_block(&request) || !read_block(&expected) || !read_block(&close_frame))
        die("standard input lacks the request, the expected text or the close frame");
    while (read_block(&frame)) {
        ring.bytes = resize(ring.bytes, 2 * (ring_size + frame.size), 1);
        memcpy(ring.bytes + ring_size, frame.bytes, frame.size);
        ring_size += frame.size;
        frame_sizes = resize(frame_sizes, ++frame_count, sizeof *frame_sizes);
        frame_sizes[frame_count - 1] = frame.size;
        free(frame.bytes);
    }
    if (!frame_count)
        die("standard input has no frames to send");
    memcpy(ring.bytes + ring_size, ring.bytes, ring_size);
}

static void watch(struct connection *connection, int operation)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (connection->awaits_writable)
        event.events |= EPOLLOUT;
    if (epoll_ctl(epoll_fd, operation, connection->fd, &event))
        die("epoll_ctl: %s", strerror(errno));
}

/* Makes the pong to the latest ping. Its key is 0, which a server has as much work with as with any other. */
static void make_pong(struct connection *connection)
{
    unsigned char header[MASKED_HEADER] = {FIN | PONG, (unsigned char)(MASKED | connection->ping_size)};
    memcpy(connection->pong, header, sizeof header);
    memcpy(connection->pong + sizeof header, connection->ping, connection->ping_size);
}

/* Turns, when all before it has been sent, to what is due next; returns whether there is anything. */
static bool take_up_next(struct connection *connection)
{
    connection->control = NULL;
    if (connection->block) {
        connection->control = connection->block->bytes;
        connection->to_send = connection->block->size;
        connection->block = NULL;
    } else if (connection->pong_due) {
        make_pong(connection);
        connection->control = connection->pong;
        connection->to_send = MASKED_HEADER + connection->ping_size;
        connection->pong_due = false;
    } else {
        for (; connection->frames_due; connection->frames_due--) {
            connection->to_send += frame_sizes[connection->next_frame];
            connection->next_frame = (connection->next_frame + 1) % frame_count;
        }
    }
    return connection->to_send;
}

static void flush(struct connection *connection)
{
    while (connection->to_send || take_up_next(connection)) {
        const unsigned char *start = connection->control;
        size_t size = connection->to_send;
        if (!start) {
            start = ring.bytes + connection->position;
            size = size < ring_size ? size : ring_size;
        }
        ssize_t sent = send(connection->fd, start, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0)
            die("a connection broke: %s", strerror(errno));
        connection->to_send -= (size_t)sent;
        if (connection->control)
            connection->control += sent;
        else
            connection->position = (connection->position + (size_t)sent) % ring_size;
    }
    if (connection->awaits_writable != (connection->to_send > 0)) {
        connection->awaits_writable = connection->to_send > 0;
        watch(connection, EPOLL_CTL_MOD);
    }
}

static void send_control(struct connection *connection, const struct block *block)
{
    connection->block = block;
    flush(connection);
}

static void send_messages(struct connection *connection, size_t count)
{
    connection->frames_due += count;
    flush(connection);
}

static void start_connection(struct connection *connection)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    memset(connection, 0, sizeof *connection);
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connection->fd < 0)
        die("socket: %s", strerror(errno));
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address))
        die("cannot connect to port %u: %s", port, strerror(errno));
    int on = 1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(connection, EPOLL_CTL_ADD);
    opening++;
    send_control(connection, &request);
}

static void start_messages(void)
{
    for (size_t i = 0; i < connection_count; i++)
        if (mode == ECHO || (mode == FAN_OUT && i == 0))
            send_messages(&connections[i], in_flight);
        else if (mode == IDLE)
            send_messages(&connections[i], 1);
}

static void begin(void)
{
    puts("begin");
    fflush(stdout);
}

static void on_open(struct connection *connection)
{
    connection->open = true;
    connection->filled = 0;
    opening--;
    opened++;
    if (mode == CONNECT)
        send_messages(connection, 1);
    else if (opened == connection_count)
        start_messages();
    else if (opened + opening < connection_count)
        start_connection(&connections[opened + opening]);
}

/* Sends the messages that are due by now, on each connection in turn. */
static void send_due(double now)
{
    for (; (now - started_at) * rate >= (double)sent_in_all; sent_in_all++)
        send_messages(&connections[sent_in_all % connection_count], 1);
}

/* When the first message that has not come back on the connection was, or will be, due. */
static double oldest_due(size_t connection)
{
    return started_at + (double)(returned[connection] * connection_count + connection) / rate;
}

/* Notes that the oldest message on the connection came back now, or has not by the end of the window. */
static void note_latency(size_t connection, double now)
{
    double due = oldest_due(connection);
    returned[connection]++;
    if (!measuring || due < window_start)
        return;
    if (latency_count == latency_capacity) {
        latency_capacity = 2 * latency_capacity + 1024;
        latencies = resize(latencies, latency_capacity, sizeof *latencies);
    }
    latencies[latency_count++] = now - due;
}

static void on_message(struct connection *connection)
{
    received++;
    counted += measuring && mode != CONNECT;
    if (mode == RATE)
        note_latency((size_t)(connection - connections), seconds_of(CLOCK_MONOTONIC));
    else if (mode == FAN_OUT && received % (connection_count * in_flight) == 0)
        send_messages(&connections[0], in_flight);
    else if (mode == IDLE && received == connection_count)
        begin();
}

static bool is_ping(const struct connection *connection)
{
    return (connection->header[0] & OPCODE) == PING;
}

/* Takes a ping's header. A ping before it that is not answered yet need not be: RFC 6455 section 5.5.3. */
static void on_ping_header(struct connection *connection)
{
    if (connection->payload_left > MAX_CONTROL)
        die("the server sent a ping of more than %d bytes", MAX_CONTROL);
    connection->ping_size = 0;
    connection->pong_due = false;
}

static void on_ping(struct connection *connection)
{
    counted += measuring && mode == KEEPALIVE;
    connection->pong_due = true;
    flush(connection);
}

/* Takes the frame whose header has been received, and its payload; returns how many messages it completes. */
static size_t on_frame(struct connection *connection)
{
    unsigned char first = connection->header[0];
    if ((first & OPCODE) == CLOSE && !connection->closing)
        die("the server closed a WebSocket");
    if (is_ping(connection))
        on_ping(connection);
    if (first & CONTROL)
        return 0;
    if (expected.size && (first & OPCODE) && !(first & RSV1))
        die("a message came back uncompressed");
    if (!(first & FIN))
        return 0;
    on_message(connection);
    return 1;
}

/* Returns the size of the frame's header, as far as what has been received of it tells. */
static size_t header_size(const struct connection *connection)
{
    if (connection->filled < 2)
        return 2;
    unsigned char length = connection->header[1];
    return length < 126 ? 2 : length == 126 ? 4 : 10;
}

static uint64_t payload_length(const struct connection *connection)
{
    size_t size = header_size(connection);
    if (size == 2)
        return connection->header[1];
    uint64_t length = 0;
    for (size_t i = 2; i < size; i++)
        length = length << 8 | connection->header[i];
    return length;
}

/* Returns how many messages the data completes. */
static size_t take_frames(struct connection *connection, const unsigned char *data, size_t size)
{
    size_t completed = 0;
    while (size) {
        if (!connection->in_payload) {
            connection->header[connection->filled++] = *data++;
            size--;
            if (connection->filled < header_size(connection))
                continue;
            connection->in_payload = true;
            connection->payload_left = payload_length(connection);
            if (is_ping(connection))
                on_ping_header(connection);
        }
        size_t step = size < connection->payload_left ? size : connection->payload_left;
        if (is_ping(connection)) {
            memcpy(connection->ping + connection->ping_size, data, step);
            connection->ping_size += step;
        }
        connection->payload_left -= step;
        data += step;
        size -= step;
        if (!connection->payload_left) {
            completed += on_frame(connection);
            connection->in_payload = false;
            connection->filled = 0;
        }
    }
    return completed;
}

/* Takes what belongs to the head of the response; returns how many bytes that is. */
static size_t take_head(struct connection *connection, const unsigned char *data, size_t size)
{
    size_t before = connection->filled, room = MAX_HEAD - before;
    memcpy(connection->head + before, data, size < room ? size : room);
    connection->filled += size < room ? size : room;
    connection->head[connection->filled] = '\0';
    char *end = strstr(connection->head, "\r\n\r\n");
    if (!end && connection->filled < MAX_HEAD)
        return size;
    if (!end || strncmp(connection->head, "HTTP/1.1 101 ", 13) ||
        !strcasestr(connection->head, (char *)expected.bytes))
        die("the opening handshake was answered with\n%s", connection->head);
    size_t taken = (size_t)(end + 4 - connection->head) - before;
    on_open(connection);
    return taken;
}

static void on_end(struct connection *connection)
{
    if (!connection->closing)
        die("the server closed a connection");
    close(connection->fd);
    counted += measuring;
    start_connection(connection);
}

static void on_readable(struct connection *connection)
{
    static unsigned char buffer[READ_SIZE];
    ssize_t size = recv(connection->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        on_end(connection);
        return;
    }
    size_t head = connection->open ? 0 : take_head(connection, buffer, (size_t)size);
    size_t completed = take_frames(connection, buffer + head, (size_t)size - head);
    if (completed && mode == ECHO) {
        send_messages(connection, completed);
    } else if (completed && mode == CONNECT) {
        connection->closing = true;
        send_control(connection, &close_frame);
    }
}

/* Waits for events until so many seconds from now, and handles them; returns whether there were any. */
static bool handle_events(double timeout)
{
    struct epoll_event events[MAX_EVENTS];
    timeout = timeout > 0 ? timeout : 0;
    struct timespec limit = {.tv_sec = (time_t)timeout};
    limit.tv_nsec = (long)((timeout - (double)limit.tv_sec) * 1e9);
    int count = epoll_pwait2(epoll_fd, events, MAX_EVENTS, &limit, NULL);
    if (count < 0 && errno != EINTR)
        die("epoll_pwait2: %s", strerror(errno));
    for (int i = 0; i < count; i++) {
        struct connection *connection = events[i].data.ptr;
        if (events[i].events & EPOLLOUT)
            flush(connection);
        if (events[i].events & ~(uint32_t)EPOLLOUT)
            on_readable(connection);
    }
    return count > 0;
}

static void open_connections(void)
{
    for (size_t i = 0; i < connection_count && i < MAX_OPENING; i++)
        start_connection(&connections[i]);
    while (mode != CONNECT && opened < connection_count)
        if (!handle_events(OPENING_TIMEOUT))
            die("%zu of %zu connections were opened", opened, connection_count);
}

static void run_until(double end)
{
    for (double now; (now = seconds_of(CLOCK_MONOTONIC)) < end;) {
        double wake = end;
        if (mode == RATE) {
            send_due(now);
            double next_due = started_at + (double)sent_in_all / rate;
            wake = next_due < end ? next_due : end;
        }
        handle_events(wake - now);
    }
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Counts what has not come back, too, with the time that it has taken so far. */
static void print_latencies(double end)
{
    for (size_t i = 0; i < connection_count; i++)
        while (oldest_due(i) < end)
            note_latency(i, end);
    qsort(latencies, latency_count, sizeof *latencies, compare);
    for (int percentile = 50; latency_count && percentile < 100; percentile += 49)
        printf(", \"latency_%d\": %.9f", percentile, latencies[(latency_count - 1) * (size_t)percentile / 100]);
}

int main(int argc, char **argv)
{
    if (argc != 8)
        die("usage: load MODE PORT CONNECTIONS IN_FLIGHT WARM_UP SECONDS RATE <PREPARED");
    while (mode <= KEEPALIVE && strcmp(argv[1], MODES[mode]))
        mode++;
    if (mode > KEEPALIVE)
        die("there is no mode %s", argv[1]);
    port = (uint16_t)atoi(argv[2]);
    connection_count = strtoul(argv[3], NULL, 10);
    in_flight = strtoul(argv[4], NULL, 10);
    double warm_up = atof(argv[5]), seconds = atof(argv[6]);
    rate = atof(argv[7]);
    /* Whatever happens, it ends; but a server may take a second to open a hundred connections. */
    alarm(2 * (unsigned)OPENING_TIMEOUT + (unsigned)(connection_count / 100) + (unsigned)(warm_up + seconds));
    prctl(PR_SET_TIMERSLACK, 1UL);
    read_prepared();
    connections = resize(NULL, connection_count, sizeof *connections);
    returned = resize(NULL, connection_count, sizeof *returned);
    memset(returned, 0, connection_count * sizeof *returned);
    epoll_fd = epoll_create1(0);

    open_connections();
    started_at = seconds_of(CLOCK_MONOTONIC);
    if (mode == IDLE)
        for (;;)
            handle_events(OPENING_TIMEOUT);
    run_until(started_at + warm_up);
    measuring = true;
    window_start = seconds_of(CLOCK_MONOTONIC);
    double cpu_before = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    begin();
    run_until(window_start + seconds);
    double end = seconds_of(CLOCK_MONOTONIC);
    printf("{\"messages\": %llu, \"seconds\": %.9f, \"cpu_seconds\": %.9f", (unsigned long long)counted,
           end - window_start, seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_before);
    if (mode == RATE)
        print_latencies(end);
    puts("}");
    return 0;
}
