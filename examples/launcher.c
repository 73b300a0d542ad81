/* A launcher in C that needs only the C library. It passes a pidfd of the process that becomes the machine.
 *
 *     launcher NAME COMMAND [ARGUMENT]...
 *
 * The child waits until it is in its scope, then executes the command. A varlink message is JSON followed by a zero
 * byte; file descriptors are sent with its first byte (https://varlink.org/, systemd's sd-varlink(3)). */

#define _GNU_SOURCE
#include <err.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define SERVICE "/run/moorage/io.moorage.Machine"
#define CALL \
        "{\"method\":\"io.moorage.Machine.Register\",\"parameters\":" \
        "{\"name\":\"%s\",\"class\":\"vm\",\"leaderFileDescriptor\":0,\"lease\":true}}"

#define RETRY_MSEC 500 /* a restarted service waits five seconds */

static int connect_to_service(void) {
        const char *path = getenv("MOORAGE_ADDRESS");
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        snprintf(address.sun_path, sizeof address.sun_path, "%s", path ? path : SERVICE);
        if (fd >= 0 && connect(fd, (struct sockaddr *) &address, sizeof address) < 0) {
                close(fd);
                fd = -1;
        }
        return fd;
}

static bool send_with_fd(int service, const char *message, int fd) {
        union {
                char room[CMSG_SPACE(sizeof fd)];
                struct cmsghdr aligned;
        } control = { 0 };
        struct iovec bytes = { .iov_base = (char *) message, .iov_len = strlen(message) + 1 }; /* with the zero byte */
        struct msghdr header = {
                .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.room,
        };
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);

        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
        return sendmsg(service, &header, MSG_NOSIGNAL) == (ssize_t) bytes.iov_len;
}

static bool receive(int service, char *reply, size_t size) {
        size_t length = 0;

        do {
                ssize_t count = length < size ? recv(service, reply + length, size - length, 0) : -1;
                if (count <= 0)
                        return false;
                length += (size_t) count;
        } while (reply[length - 1] != '\0');
        return true;
}

/* Returns the connection that holds the lease, or -1. */
static int register_machine(const char *name, int pidfd) {
        static char reply[1024 * 1024];
        char call[sizeof CALL + 64];
        int service = connect_to_service();

        snprintf(call, sizeof call, CALL, name);
        if (service < 0)
                warn("Failed to connect");
        else if (!send_with_fd(service, call, pidfd) || !receive(service, reply, sizeof reply))
                warnx("The service closed the connection");
        else if (strstr(reply, "\"error\":"))
                warnx("Failed to register: %s", reply);
        else
                return service;
        close(service);
        return -1;
}

int main(int argc, char **argv) {
        char released;
        int gate[2], status;

        /* Of the characters that a machine's name may have, only the backslash is special in JSON. */
        if (argc < 3 || strlen(argv[1]) > 64 || strpbrk(argv[1], "\"\\"))
                errx(2, "usage: launcher NAME COMMAND [ARGUMENT]...");
        if (pipe(gate) < 0)
                err(125, "Failed to create a pipe");

        pid_t child = fork();
        if (child < 0)
                err(125, "Failed to fork");
        if (child == 0) {
                close(gate[1]);
                if (read(gate[0], &released, 1) != 1) /* the launcher has failed, or has died */
                        _exit(125);
                close(gate[0]);
                execvp(argv[2], argv + 2);
                err(127, "Failed to execute %s", argv[2]);
        }
        close(gate[0]);

        int pidfd = (int) syscall(SYS_pidfd_open, child, 0);
        if (pidfd < 0)
                err(125, "Failed to open the child");
        int service = register_machine(argv[1], pidfd);
        if (service < 0)
                return 125;

        if (write(gate[1], "", 1) != 1)
                err(125, "Failed to release the child");
        close(gate[1]);

        /* A restart or an upgrade of the service ends the connection; the machine survives if the new instance gets the
         * same call within some seconds. */
        for (;;) {
                struct pollfd events[] = { { .fd = pidfd, .events = POLLIN }, { .fd = service, .events = POLLIN } };

                if (poll(events, 2, service < 0 ? RETRY_MSEC : -1) < 0)
                        err(125, "Failed to wait");
                if (events[0].revents)
                        break;
                if (service >= 0)
                        close(service);
                service = register_machine(argv[1], pidfd);
        }
        if (waitpid(child, &status, 0) < 0)
                err(125, "Failed to wait");
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
