/*
 * The yardstick: a WebSocket echo with as little work as there can be, one thread, one epoll. `echo PORT`.
 *
 * It trusts its client: what it reads first is a request, whose key is the example of RFC 6455 section 1.3; what
 * follows are whole messages, each in a frame, masked; and a close frame, at which it closes. All frames that one
 * read completes are sent back together. Where the client does not take them, it is not read from until it does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_SIZE = 1 << 16, MAX_EVENTS = 256 };
enum { OPCODE = 0x0f, CLOSE = 0x08 }; /* RFC 6455 section 5.2 */

static const char RESPONSE[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                               "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

struct connection {
    int fd;
    bool open, closing, blocked;
    unsigned char *buffer; /* `replies` bytes to send, of which `sent` were; then what has been read and not taken */
    size_t replies, sent, filled, capacity;
};

static int epoll_fd;

static void check(bool fine, const char *what)
{
    if (!fine) {
        perror(what);
        exit(1);
    }
}

static void watch(struct connection *connection, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    check(!epoll_ctl(epoll_fd, operation, connection->fd, &event), "epoll_ctl");
}

static void accept_connection(int listener)
{
    struct connection *connection = calloc(1, sizeof *connection);
    check(connection, "calloc");
    connection->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    check(connection->fd >= 0, "accept4");
    int on = 1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(connection, EPOLL_CTL_ADD, EPOLLIN);
}

static void drop(struct connection *connection)
{
    close(connection->fd);
    free(connection->buffer);
    free(connection);
}

static void unmask(unsigned char *to, const unsigned char *from, size_t length, const unsigned char *key)
{
    uint32_t narrow;
    memcpy(&narrow, key, 4);
    uint64_t wide = (uint64_t)narrow << 32 | narrow, word;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= wide;
        memcpy(to + i, &word, 8);
    }
    for (; i < length; i++)
        to[i] = from[i] ^ key[i % 4];
}

/* Turns the frame at `from` into its reply at `to`, not behind it, if it is whole; returns its size, else 0. */
static size_t reply(unsigned char *to, const unsigned char *from, size_t available, size_t *reply_size)
{
    if (available < 2)
        return 0;
    size_t short_length = from[1] & 0x7f, header = short_length < 126 ? 2 : short_length == 126 ? 4 : 10;
    if (available < header + 4)
        return 0;
    size_t length = header == 2 ? short_length : 0;
    for (size_t i = 2; i < header; i++)
        length = length << 8 | from[i];
    if (available < header + 4 + length)
        return 0;
    unsigned char key[4];
    memcpy(key, from + header, 4);
    memmove(to, from, header);
    to[1] &= 0x7f;
    unmask(to + header, from + header + 4, length, key);
    *reply_size = header + length;
    return header + 4 + length;
}

static void make_replies(struct connection *connection)
{
    size_t taken = 0, size, reply_size;
    unsigned char *buffer = connection->buffer;
    while ((size = reply(buffer + connection->replies, buffer + taken, connection->filled - taken, &reply_size))) {
        connection->closing |= (buffer[connection->replies] & OPCODE) == CLOSE;
        connection->replies += reply_size;
        taken += size;
    }
    memmove(buffer + connection->replies, buffer + taken, connection->filled - taken);
    connection->filled -= taken - connection->replies;
}

static void flush(struct connection *connection)
{
    size_t left = connection->replies - connection->sent;
    ssize_t sent = send(connection->fd, connection->buffer + connection->sent, left, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        drop(connection);
        return;
    }
    if (sent > 0)
        connection->sent += (size_t)sent;
    bool was_blocked = connection->blocked;
    connection->blocked = connection->sent < connection->replies;
    if (connection->blocked != was_blocked)
        watch(connection, EPOLL_CTL_MOD, connection->blocked ? EPOLLOUT : EPOLLIN);
    if (connection->blocked)
        return;
    if (connection->closing) {
        drop(connection);
        return;
    }
    connection->filled -= connection->replies;
    memmove(connection->buffer, connection->buffer + connection->replies, connection->filled);
    connection->replies = connection->sent = 0;
}

static void on_readable(struct connection *connection)
{
    if (connection->capacity < connection->filled + READ_SIZE) {
        connection->capacity = 2 * connection->capacity + READ_SIZE;
        connection->buffer = realloc(connection->buffer, connection->capacity);
        check(connection->buffer, "realloc");
    }
    ssize_t size = recv(connection->fd, connection->buffer + connection->filled,
                        connection->capacity - connection->filled, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        drop(connection);
        return;
    }
    if (!connection->open) {
        connection->open = true;
        check(send(connection->fd, RESPONSE, sizeof RESPONSE - 1, 0) == sizeof RESPONSE - 1, "send");
        return;
    }
    connection->filled += (size_t)size;
    make_replies(connection);
    if (connection->replies)
        flush(connection);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc == 2 ? argv[1] : ""))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    check(listener >= 0, "socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    check(!bind(listener, (struct sockaddr *)&address, sizeof address), "bind");
    check(!listen(listener, SOMAXCONN), "listen");
    epoll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[MAX_EVENTS];
    check(!epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event), "epoll_ctl");
    for (;;) {
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (!connection)
                accept_connection(listener);
            else if (connection->replies)
                flush(connection);
            else
                on_readable(connection);
        }
    }
}
