/* Acts on sockets and on the network set-up. Nothing here sends beyond what the test listens on. */
#include "probe.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

/* socket FAMILY TYPE PROTOCOL, as numbers. */
static int act_socket(int argc, char **argv) {
    int type = number(argc, argv, 2, SOCK_STREAM), protocol = number(argc, argv, 3, 0);
    return socket(number(argc, argv, 1, AF_INET), type, protocol) < 0 ? -1 : 0;
}

/* Waits two seconds for a connection in progress. */
static int finish(int fd, const struct sockaddr *address, socklen_t size) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (connect(fd, address, size) == 0)
        return 0;
    if (errno != EINPROGRESS)
        return -1;
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    int error = 0;
    socklen_t length = sizeof error;
    if (poll(&wait, 1, 2000) != 1) {
        errno = ETIMEDOUT;
        return -1;
    }
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    errno = error;
    return error ? -1 : 0;
}

/* connect ADDRESS PORT: TCP, version 4 or 6 by the look of the address. */
static int act_connect(int argc, char **argv) {
    const char *text = arg(argc, argv, 1, "127.0.0.1");
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    v4.sin_port = v6.sin6_port = htons(number(argc, argv, 2, 80));
    int six = strchr(text, ':') != NULL;
    if (inet_pton(six ? AF_INET6 : AF_INET, text,
                  six ? (void *)&v6.sin6_addr : (void *)&v4.sin_addr) != 1) {
        errno = EINVAL;
        return -1;
    }
    int fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    return six ? finish(fd, (struct sockaddr *)&v6, sizeof v6)
               : finish(fd, (struct sockaddr *)&v4, sizeof v4);
}

/* udp ADDRESS PORT: sends one datagram. */
static int act_udp(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons(number(argc, argv, 2, 53));
    inet_pton(AF_INET, arg(argc, argv, 1, "127.0.0.1"), &to.sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0)
        return -1;
    return sendto(fd, "probe", 5, 0, (struct sockaddr *)&to, sizeof to) < 0 ? -1 : 0;
}

/* fastopen ADDRESS PORT: a connection by sendto(2), which is a different hook in the kernel. */
static int act_fastopen(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons(number(argc, argv, 2, 80));
    inet_pton(AF_INET, arg(argc, argv, 1, "127.0.0.1"), &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        return -1;
    ssize_t n = sendto(fd, "p", 1, MSG_FASTOPEN, (struct sockaddr *)&to, sizeof to);
    return n < 0 ? -1 : 0;
}

/* unix PATH | unix @NAME: a stream socket by path or by abstract name. */
static int act_unix(int argc, char **argv) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    const char *name = arg(argc, argv, 1, "@none");
    strncpy(to.sun_path, name, sizeof to.sun_path - 1);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + strlen(name);
    if (*name == '@')
        to.sun_path[0] = 0;
    else
        size = sizeof to;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? -1 : finish(fd, (struct sockaddr *)&to, size);
}

static int act_hostname(int argc, char **argv) {
    const char *name = arg(argc, argv, 1, "owned");
    return sethostname(name, strlen(name));
}

/* link-down NAME: takes an interface down, `lo` by default. */
static int act_link_down(int argc, char **argv) {
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strncpy(request.ifr_name, arg(argc, argv, 1, "lo"), IFNAMSIZ - 1);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        return -1;
    request.ifr_flags &= ~IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &request);
}

/* address: gives `lo` a further address, 192.0.2.77 (documentation range). */
static int act_address(int argc, char **argv) {
    (void)argc, (void)argv;
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "lo:9");
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    in->sin_family = AF_INET;
    inet_pton(AF_INET, "192.0.2.77", &in->sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return fd < 0 ? -1 : ioctl(fd, SIOCSIFADDR, &request);
}

/* Brings `lo` up where it is not; a fresh namespace has it down, and routes then fail. */
static void raise_loopback(void) {
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "lo");
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) < 0 || request.ifr_flags & IFF_UP)
        return;
    request.ifr_flags |= IFF_UP;
    ioctl(fd, SIOCSIFFLAGS, &request);
}

/* route: adds 203.0.113.0/24 over `lo` by netlink and reads the kernel's answer. */
static int act_route(int argc, char **argv) {
    (void)argc, (void)argv;
    raise_loopback();
    struct {
        struct nlmsghdr head;
        struct rtmsg route;
        struct {
            struct rtattr attr;
            unsigned int value;
        } dst, oif;
    } m;
    memset(&m, 0, sizeof m);
    m.head.nlmsg_len = sizeof m;
    m.head.nlmsg_type = RTM_NEWROUTE;
    m.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK;
    m.route.rtm_family = AF_INET;
    m.route.rtm_dst_len = 24;
    m.route.rtm_table = RT_TABLE_MAIN;
    m.route.rtm_protocol = RTPROT_STATIC;
    m.route.rtm_scope = RT_SCOPE_LINK;
    m.route.rtm_type = RTN_UNICAST;
    m.dst.attr.rta_len = m.oif.attr.rta_len = sizeof m.dst;
    m.dst.attr.rta_type = RTA_DST;
    m.dst.value = htonl(0xcb007100);
    m.oif.attr.rta_type = RTA_OIF;
    m.oif.value = if_nametoindex("lo");
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &m, sizeof m, 0) < 0)
        return -1;
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
    } answer;
    memset(&answer, 0, sizeof answer);
    if (recv(fd, &answer, sizeof answer, 0) < 0)
        return -1;
    errno = -answer.error.error;
    return answer.error.error ? -1 : 0;
}

/* self-connect: gives `lo` the address 192.0.2.1 and connects to a listener of its own there. */
static int act_self_connect(int argc, char **argv) {
    (void)argc, (void)argv;
    raise_loopback();
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "lo:8");
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    in->sin_family = AF_INET;
    inet_pton(AF_INET, arg(argc, argv, 1, "192.0.2.1"), &in->sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFADDR, &request) < 0)
        return -1;
    struct sockaddr_in at = *in;
    at.sin_port = htons(number(argc, argv, 2, 80));
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 1) < 0)
        return -1;
    char *again[] = {"connect", (char *)arg(argc, argv, 1, "192.0.2.1"),
                     (char *)arg(argc, argv, 2, "80"), NULL};
    return act_connect(3, again);
}

/* interfaces: names other than lo; succeeds if there is one. */
static int act_interfaces(int argc, char **argv) {
    (void)argc, (void)argv;
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *i = all; i && i->if_index; i++)
        if (strcmp(i->if_name, "lo") != 0) {
            snprintf(detail, sizeof detail, "%s", i->if_name);
            return 0;
        }
    errno = ENODEV;
    return -1;
}

const struct act net_acts[] = {
    {"socket", act_socket},       {"connect", act_connect},   {"udp", act_udp},
    {"fastopen", act_fastopen},   {"unix", act_unix},         {"hostname", act_hostname},
    {"link-down", act_link_down}, {"address", act_address},   {"route", act_route},
    {"interfaces", act_interfaces}, {"self-connect", act_self_connect},
    {NULL, NULL},
};
