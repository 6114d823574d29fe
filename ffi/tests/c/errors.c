/* What the other end, or somebody between, can bring about: a relay stands between two ends, and
 * changes, replaces or holds back what goes through. Each error comes again with the next call.
 *
 * SEALANE_E_PANIC alone is of no test in C: a bug of the library has no way in from here, and a
 * shipped library has no hook that makes one. The unit test of ffi/src/fence.rs brings it about. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>

#include "check.h"

enum { PAGE = 4096, PAGES = 64 };

/* What a relay does with what goes from the near end to the far end. */
enum mode { PASS, FLIP, GARBAGE, HOLD };

struct relay {
	int near, far;
	/* Where there are no sockets yet: waits here, and connects to that port. */
	int listener, port;
	int mode;
	/* Nobody waits for what it holds back any more. */
	int over;
	pthread_t thread;
};

static int read_of(const int *value)
{
	return __atomic_load_n(value, __ATOMIC_ACQUIRE);
}

static void set(int *value, int to)
{
	__atomic_store_n(value, to, __ATOMIC_RELEASE);
}

static void write_all(int fd, const char *bytes, ssize_t count)
{
	while (count > 0) {
		ssize_t wrote = send(fd, bytes, (size_t)count, MSG_NOSIGNAL);
		if (wrote <= 0)
			return; /* The end has gone. */
		bytes += wrote;
		count -= wrote;
	}
}

/* Passes on what is there; 0 at the end. */
static int pass(int from, int to, int mode)
{
	char bytes[65536];
	ssize_t got = recv(from, bytes, sizeof bytes, 0);
	if (got <= 0) {
		shutdown(to, SHUT_WR);
		return 0;
	}
	if (mode == FLIP)
		bytes[got - 1] ^= 1;
	if (mode == GARBAGE)
		memset(bytes, 0xFF, (size_t)got);
	write_all(to, bytes, got);
	return 1;
}

static struct sockaddr_in loopback(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static void *run_relay(void *argument)
{
	struct relay *relay = argument;
	if (relay->listener >= 0) {
		struct sockaddr_in address = loopback(relay->port);
		relay->near = accept(relay->listener, NULL, NULL);
		relay->far = socket(AF_INET, SOCK_STREAM, 0);
		CHECK(relay->near >= 0 && relay->far >= 0);
		CHECK(connect(relay->far, (struct sockaddr *)&address, sizeof address) == 0);
	}
	struct pollfd ready[2] = {{relay->near, POLLIN, 0}, {relay->far, POLLIN, 0}};
	while (!read_of(&relay->over) && (ready[0].fd >= 0 || ready[1].fd >= 0)) {
		int mode = read_of(&relay->mode);
		/* It looks now and then what it is to do. */
		int events = poll(ready, mode == HOLD ? 0 : 2, 20);
		CHECK(events >= 0);
		if (events == 0)
			continue;
		/* Again: what came after it was told to change is changed. */
		mode = read_of(&relay->mode);
		if (mode == HOLD)
			continue;
		if (ready[0].revents && !pass(relay->near, relay->far, mode))
			ready[0].fd = -1;
		if (ready[1].revents && !pass(relay->far, relay->near, PASS))
			ready[1].fd = -1;
	}
	close(relay->near);
	close(relay->far);
	return NULL;
}

static void end_relay(struct relay *relay)
{
	set(&relay->over, 1);
	pthread_join(relay->thread, NULL);
	if (relay->listener >= 0)
		close(relay->listener);
}

/* A session of streams through a relay. */
static void connect_through(struct relay *relay, struct end *near, struct end *far,
                            const struct sealane_trust *trust,
                            const struct sealane_config *config)
{
	int close_by[2], far_off[2];
	sockets(close_by);
	sockets(far_off);
	*relay = (struct relay){.near = close_by[1], .far = far_off[0], .listener = -1};
	CHECK(pthread_create(&relay->thread, NULL, run_relay, relay) == 0);
	connect_over(close_by[0], far_off[1], near, far, trust, config);
}

/* A frame that was changed on its way, and bytes that are none. */
static void a_stream_sees_what_was_done_to_it(const struct sealane_trust *trust,
                                              const struct sealane_config *config)
{
	struct {
		enum mode mode;
		int error;
		const char *said;
	} cases[2] = {{FLIP, -SEALANE_E_UNSEAL, "did not verify"},
	              {GARBAGE, -SEALANE_E_PROTOCOL, "malformed prefix"}};
	for (int n = 0; n < 2; n++) {
		struct relay relay;
		struct end near, far;
		char bytes[16] = "sixteen bytes..";
		struct iovec part = {bytes, sizeof bytes};
		connect_through(&relay, &near, &far, trust, config);
		byte_crosses(near.stream, far.stream, 1);
		byte_crosses(far.stream, near.stream, 2);
		set(&relay.mode, cases[n].mode);
		CHECK(sealane_stream_writev(near.stream, &part, 1) == sizeof bytes);
		for (int again = 0; again < 2; again++) {
			CHECK(sealane_stream_readv(far.stream, &part, 1) == cases[n].error);
			CHECK(strstr(sealane_last_error(), cases[n].said));
		}
		/* Nothing of it was given. */
		CHECK(memcmp(bytes, "sixteen bytes..", sizeof bytes) == 0);
		destroy_end(&near);
		destroy_end(&far);
		end_relay(&relay);
	}
}

static void another_secret_opens_nothing(const struct sealane_trust *trust,
                                         const struct sealane_config *config)
{
	struct sealane_trust *other = new_trust();
	struct end far = {.role = SEALANE_ROLE_TARGET, .config = config}, near = {0};
	pthread_t thread;
	int fds[2];
	sockets(fds);
	far.fd = fds[1];
	far.trust = other;
	CHECK(pthread_create(&thread, NULL, answer_and_close, &far) == 0);
	near.result = sealane_streams_open(fds[0], SEALANE_ROLE_SOURCE, trust, config, NULL,
	                                   &near.streams, &near.stream);
	pthread_join(thread, NULL);
	CHECK(near.result == -SEALANE_E_NOT_AUTHENTICATED);
	CHECK(far.result == -SEALANE_E_NOT_AUTHENTICATED);
	CHECK(near.stream == NULL && near.streams == NULL && far.stream == NULL);
	sealane_trust_destroy(&other);
	close(fds[0]);
}

/* A migration through a relay, from a thread to another. */
struct guest {
	struct sealane_trust *trust;
	const struct sealane_config *config;
	struct sealane_canceller *canceller;
	struct sealane_listener *listener;
	struct sealane_region *near, *far;
	struct sealane_source *source;
	struct sealane_target *target;
	char *memory;
	struct relay relay;
	pthread_t thread;
	/* Of a thread's last call. */
	int received, sent;
};

static void *receive(void *argument)
{
	struct guest *guest = argument;
	struct sealane_lanes *lanes = NULL;
	const struct sealane_region *list[1] = {guest->far};
	CHECK(sealane_lanes_accept(guest->listener, SEALANE_ROLE_TARGET, guest->trust, guest->config,
	                           NULL, &lanes) == 0);
	CHECK(sealane_target_start(lanes, guest->config, NULL, &guest->target) == 0);
	sealane_lanes_destroy(&lanes);
	CHECK(sealane_target_accept(guest->target, list, 1) == 0);
	guest->received = (int)sealane_target_receive(guest->target);
	return NULL;
}

static void start(struct guest *guest, const struct sealane_config *config)
{
	struct sealane_lanes *lanes;
	struct sockaddr_in address = loopback(0);
	socklen_t bytes = sizeof address;
	*guest = (struct guest){.config = config};
	guest->trust = new_trust();
	CHECK(sealane_canceller_new(&guest->canceller) == 0);
	CHECK(sealane_listener_bind("127.0.0.1:0", &guest->listener) == 0);
	CHECK(posix_memalign((void **)&guest->memory, PAGE, 2 * PAGES * PAGE) == 0);
	memset(guest->memory, 0x5A, PAGES * PAGE);
	memset(guest->memory + PAGES * PAGE, 0, PAGES * PAGE);
	CHECK(sealane_region_from_memory("ram", guest->memory, PAGES * PAGE, &guest->near) == 0);
	CHECK(sealane_region_from_memory("ram", guest->memory + PAGES * PAGE, PAGES * PAGE,
	                                 &guest->far) == 0);
	guest->relay.port = sealane_listener_port(guest->listener);
	guest->relay.listener = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(bind(guest->relay.listener, (struct sockaddr *)&address, sizeof address) == 0);
	CHECK(listen(guest->relay.listener, 1) == 0);
	CHECK(getsockname(guest->relay.listener, (struct sockaddr *)&address, &bytes) == 0);
	CHECK(pthread_create(&guest->relay.thread, NULL, run_relay, &guest->relay) == 0);
	CHECK(pthread_create(&guest->thread, NULL, receive, guest) == 0);
	lanes = dial_lanes(ntohs(address.sin_port), guest->trust, config);
	const struct sealane_region *list[1] = {guest->near};
	CHECK(sealane_source_start(lanes, list, 1, config, guest->canceller, &guest->source) == 0);
	sealane_lanes_destroy(&lanes);
}

static void destroy(struct guest *guest)
{
	sealane_source_destroy(&guest->source);
	sealane_target_destroy(&guest->target);
	end_relay(&guest->relay);
	sealane_region_destroy(&guest->near);
	sealane_region_destroy(&guest->far);
	sealane_listener_destroy(&guest->listener);
	sealane_canceller_destroy(&guest->canceller);
	sealane_trust_destroy(&guest->trust);
	free(guest->memory);
}

static void the_source_gives_up(const struct sealane_config *config)
{
	struct guest guest;
	start(&guest, config);
	CHECK(sealane_source_send_all(guest.source, NULL) == 0);
	sealane_source_destroy(&guest.source);
	pthread_join(guest.thread, NULL);
	CHECK(guest.received == -SEALANE_E_CANCELLED_BY_PEER);
	CHECK(sealane_target_ready(guest.target) == -SEALANE_E_CANCELLED_BY_PEER);
	CHECK(strstr(sealane_last_error(), "other end"));
	destroy(&guest);
}

static void a_frame_of_a_guest_is_changed(const struct sealane_config *config)
{
	struct guest guest;
	start(&guest, config);
	set(&guest.relay.mode, FLIP);
	CHECK(sealane_source_send_all(guest.source, NULL) < 0);
	pthread_join(guest.thread, NULL);
	CHECK(guest.received == -SEALANE_E_UNSEAL);
	CHECK(sealane_target_receive(guest.target) == -SEALANE_E_UNSEAL);
	destroy(&guest);
}

static void nothing_comes_any_more(struct sealane_config *config)
{
	struct guest guest;
	/* The shortest that is allowed. */
	CHECK(sealane_config_set_peer_timeout_ms(config, 1000) == 0);
	start(&guest, config);
	set(&guest.relay.mode, HOLD);
	CHECK(sealane_source_send_all(guest.source, NULL) == -SEALANE_E_SILENT);
	CHECK(strstr(sealane_last_error(), "peer_timeout"));
	CHECK(sealane_source_commit(guest.source, NULL, 0) == -SEALANE_E_SILENT);
	pthread_join(guest.thread, NULL);
	CHECK(guest.received == -SEALANE_E_SILENT);
	destroy(&guest);
	CHECK(sealane_config_set_peer_timeout_ms(config, 30000) == 0);
}

static void *commit_and_let_go(void *argument)
{
	struct guest *guest = argument;
	CHECK(sealane_source_commit(guest->source, "state", 5) == 0);
	guest->sent = sealane_source_hand_over(guest->source, NULL);
	return NULL;
}

static void the_target_does_not_confirm(const struct sealane_config *config)
{
	struct guest guest;
	pthread_t source;
	start(&guest, config);
	CHECK(sealane_source_send_all(guest.source, NULL) == 0);
	CHECK(pthread_create(&source, NULL, commit_and_let_go, &guest) == 0);
	pthread_join(guest.thread, NULL);
	CHECK(sealane_target_ready(guest.target) == 0);
	sealane_target_destroy(&guest.target);
	pthread_join(source, NULL);
	CHECK(guest.sent == -SEALANE_E_IN_DOUBT);
	CHECK(sealane_source_hand_over(guest.source, NULL) == -SEALANE_E_IN_DOUBT);
	CHECK(strstr(sealane_last_error(), "look at the target"));
	destroy(&guest);
}

static void *send_all(void *argument)
{
	struct guest *guest = argument;
	guest->sent = sealane_source_send_all(guest->source, NULL);
	return NULL;
}

/* While a thread waits in a round that cannot end, another sees how far it is, and cancels. */
static void a_round_is_looked_at_and_cancelled(const struct sealane_config *config)
{
	struct guest guest;
	struct sealane_progress progress = {.size = sizeof progress};
	pthread_t round;
	start(&guest, config);
	set(&guest.relay.mode, HOLD);
	CHECK(pthread_create(&round, NULL, send_all, &guest) == 0);
	while (progress.data_pages == 0) {
		CHECK(sealane_source_progress(guest.source, &progress) == 0);
		sched_yield();
	}
	CHECK(progress.rounds == 0 && progress.data_pages <= PAGES);
	CHECK(sealane_canceller_cancel(guest.canceller) == 0);
	pthread_join(round, NULL);
	CHECK(guest.sent == -SEALANE_E_CANCELLED);
	set(&guest.relay.mode, PASS);
	pthread_join(guest.thread, NULL);
	CHECK(guest.received == -SEALANE_E_CANCELLED_BY_PEER || guest.received == -SEALANE_E_CLOSED);
	destroy(&guest);
}

static void tests(int engine, const char *place)
{
	struct sealane_config *config = new_config(engine);
	struct sealane_trust *trust = new_trust();
	CHECK(sealane_config_set_frame_bytes(config, 65536) == 0);
	/* Zero-copy sends that a relay holds back are waited for. */
	CHECK(sealane_config_set_zero_copy(config, SEALANE_ZERO_COPY_OFF) == 0);
	a_stream_sees_what_was_done_to_it(trust, config);
	another_secret_opens_nothing(trust, config);
	the_source_gives_up(config);
	a_frame_of_a_guest_is_changed(config);
	the_target_does_not_confirm(config);
	a_round_is_looked_at_and_cancelled(config);
	nothing_comes_any_more(config);
	sealane_trust_destroy(&trust);
	sealane_config_destroy(&config);
	(void)place;
}

int main(int count, char **arguments)
{
	return run_tests(count, arguments, tests);
}
