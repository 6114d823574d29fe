/* Streams between two threads of one C program: every function of the header's stream part, and
 * the errors that a caller can bring about. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include "check.h"

enum { MANY = 3000000 };

static void *write_many(void *argument)
{
	struct end *end = argument;
	static unsigned char bytes[MANY];
	struct iovec parts[3] = {{bytes, 100}, {NULL, 0}, {bytes + 100, MANY - 100}};
	for (size_t n = 0; n < MANY; n++)
		bytes[n] = (unsigned char)(n * 7 + n / 251);
	CHECK(sealane_stream_writev(end->stream, parts, 3) == MANY);
	CHECK(sealane_stream_flush(end->stream) == 0);
	CHECK(sealane_stream_shutdown(end->stream, SHUT_WR) == 0);
	return NULL;
}

static void bytes_cross(const struct sealane_trust *trust, const struct sealane_config *config)
{
	struct end near, far;
	pthread_t thread;
	size_t came = 0;
	static unsigned char buffer[77777];
	struct sealane_stream_statistics statistics = {.size = sizeof statistics};
	unsigned char near_id[16], far_id[16];

	connect_ends(&near, &far, trust, config);
	CHECK(sealane_streams_migration_id(near.streams, near_id) == 0);
	CHECK(sealane_streams_migration_id(far.streams, far_id) == 0);
	CHECK(memcmp(near_id, far_id, sizeof near_id) == 0);
	CHECK(pthread_create(&thread, NULL, write_many, &near) == 0);
	for (;;) {
		struct iovec parts[2] = {{buffer, 11111}, {buffer + 11111, sizeof buffer - 11111}};
		ssize_t got = sealane_stream_readv(far.stream, parts, 2);
		CHECK(got >= 0);
		for (ssize_t n = 0; n < got; n++, came++)
			CHECK(buffer[n] == (unsigned char)(came * 7 + came / 251));
		if (got == 0)
			break;
	}
	CHECK(came == MANY);
	pthread_join(thread, NULL);
	CHECK(sealane_stream_get_statistics(near.stream, &statistics) == 0);
	CHECK(statistics.sent_bytes == MANY && statistics.sent_frames > 3);
	CHECK(statistics.size == sizeof statistics && statistics.system_calls > 0);
	statistics.size = 8;
	CHECK(sealane_stream_get_statistics(near.stream, &statistics) == -EINVAL);
	CHECK(strstr(sealane_last_error(), "sizeof"));
	/* What the ends agreed on. */
	CHECK(sealane_streams_frame_bytes(near.streams) == 65536);
	CHECK(sealane_streams_frame_bytes(far.streams) == 65536);
	CHECK(strcmp(sealane_streams_provider(near.streams), sealane_doctor_provider()) == 0);
	CHECK(strcmp(sealane_streams_provider(far.streams), sealane_doctor_provider()) == 0);
	/* One more stream, where nobody is. */
	{
		int fds[2];
		struct sealane_stream *other = NULL;
		sockets(fds);
		close(fds[1]);
		CHECK(sealane_streams_join(near.streams, fds[0], NULL, &other) == -SEALANE_E_CLOSED);
		CHECK(other == NULL);
		close(fds[0]);
	}
	CHECK(sealane_streams_complete(near.streams) == 0);
	destroy_end(&near);
	destroy_end(&far);
	/* The secret has had its migration. */
	int fds[2];
	sockets(fds);
	CHECK(sealane_streams_open(fds[0], SEALANE_ROLE_SOURCE, trust, config, NULL, &near.streams,
	                           &near.stream) == -SEALANE_E_CONFIG);
	close(fds[0]);
	close(fds[1]);
}

struct join {
	struct sealane_streams *streams;
	int fd;
	struct sealane_stream *stream;
	int result;
};

static void *admit(void *argument)
{
	struct join *join = argument;
	CHECK(sealane_streams_asks(join->fd, NULL, NULL) == SEALANE_ASKS_JOIN);
	join->result = sealane_streams_admit(join->streams, join->fd, NULL, &join->stream);
	return NULL;
}

/* What a connection asks for is told before anything of it is read. */
static void asked_for(void)
{
	static const struct { const char *bytes; size_t length; int result; const char *text; } first[] = {
		{"SEALANE\n\1", 9, SEALANE_ASKS_OPEN, ""},
		{"SEALANE\n\2", 9, SEALANE_ASKS_JOIN, ""},
		{"SEALANE\n\3", 9, -SEALANE_E_NOT_AUTHENTICATED, "does not know"},
		{"\x16\x03\x01\x02", 4, -SEALANE_E_NOT_AUTHENTICATED, "TLS"},
		{"QEVM\0\0\0\3", 8, -SEALANE_E_NOT_AUTHENTICATED, "QEMU"},
		{"GET /", 5, -SEALANE_E_NOT_AUTHENTICATED, "not Sealane's"},
		{"", 0, -SEALANE_E_NOT_AUTHENTICATED, "closed"},
		{"SEAL", 4, -SEALANE_E_NOT_AUTHENTICATED, "in time"},
	};
	struct sealane_config *hasty = NULL;
	CHECK(sealane_config_new(&hasty) == 0);
	CHECK(sealane_config_set_handshake_timeout_ms(hasty, 50) == 0);
	for (size_t n = 0; n < sizeof first / sizeof first[0]; n++) {
		int fds[2];
		char bytes[16];
		sockets(fds);
		CHECK(write(fds[0], first[n].bytes, first[n].length) == (ssize_t)first[n].length);
		if (first[n].length == 0)
			CHECK(shutdown(fds[0], SHUT_WR) == 0);
		CHECK(sealane_streams_asks(fds[1], hasty, NULL) == first[n].result);
		if (first[n].result < 0)
			CHECK(strstr(sealane_last_error(), first[n].text));
		CHECK(recv(fds[1], bytes, sizeof bytes, MSG_DONTWAIT) == (ssize_t)first[n].length);
		CHECK(memcmp(bytes, first[n].bytes, first[n].length) == 0);
		close(fds[0]);
		close(fds[1]);
	}
	CHECK(sealane_streams_asks(-1, hasty, NULL) == -EBADF);
	sealane_config_destroy(&hasty);
}

static void more_streams_and_readiness(const struct sealane_trust *trust,
                                       const struct sealane_config *config)
{
	struct end near, far;
	struct join join = {0};
	struct sealane_stream *second = NULL;
	pthread_t thread;
	int fds[2];
	char bytes[64];
	struct iovec part = {bytes, sizeof bytes};
	struct iovec word = {(char[]){"QEVM"}, 4};

	connect_ends(&near, &far, trust, config);
	sockets(fds);
	join.streams = far.streams;
	join.fd = fds[1];
	CHECK(pthread_create(&thread, NULL, admit, &join) == 0);
	CHECK(sealane_streams_join(near.streams, fds[0], NULL, &second) == 0);
	pthread_join(thread, NULL);
	CHECK(join.result == 0);
	/* The descriptors stay open until the other end has seen the end of the stream. */
	CHECK(sealane_stream_number(near.stream) == 0 && sealane_stream_number(second) == 1);

	CHECK(sealane_stream_set_nonblocking(join.stream, true) == 0);
	CHECK(sealane_stream_readv(join.stream, &part, 1) == -EAGAIN);
	struct pollfd ready = {sealane_stream_read_fd(join.stream), POLLIN, 0};
	CHECK(ready.fd >= 0 && poll(&ready, 1, 0) == 0);
	CHECK(sealane_stream_writev(second, &word, 1) == 4);
	CHECK(poll(&ready, 1, 10000) == 1);
	CHECK(sealane_stream_peek(join.stream, bytes, 4) == 4 && memcmp(bytes, "QEVM", 4) == 0);
	CHECK(sealane_stream_readv(join.stream, &part, 1) == 4);
	struct pollfd writable = {sealane_stream_write_fd(second), POLLOUT, 0};
	CHECK(poll(&writable, 1, 0) == 1);
	/* A full socket takes no more. */
	CHECK(sealane_stream_set_nonblocking(second, true) == 0);
	static char block[1 << 20];
	struct iovec large = {block, sizeof block};
	ssize_t took;
	do
		took = sealane_stream_writev(second, &large, 1);
	while (took > 0);
	CHECK(took == -EAGAIN);

	/* Given up, with the reason. */
	CHECK(sealane_stream_cancel(near.stream, "the disk is full") == 0);
	CHECK(sealane_stream_readv(far.stream, &part, 1) == -SEALANE_E_REFUSED);
	CHECK(strstr(sealane_last_error(), "the disk is full"));
	CHECK(sealane_stream_writev(near.stream, &word, 1) == -EPIPE);
	CHECK(sealane_stream_shutdown(far.stream, SHUT_RD) == 0);
	/* Destroyed without an end: an error, and no end of the stream. */
	sealane_stream_destroy(&second);
	ssize_t got;
	do
		got = sealane_stream_readv(join.stream, &large, 1);
	while (got > 0 || got == -EAGAIN);
	CHECK(got == -SEALANE_E_CLOSED);
	/* And again. */
	CHECK(sealane_stream_readv(join.stream, &large, 1) == -SEALANE_E_CLOSED);
	close(fds[0]);
	close(fds[1]);
	sealane_stream_destroy(&join.stream);
	destroy_end(&near);
	destroy_end(&far);
}

static void mistakes_are_errors(const struct sealane_trust *trust, struct sealane_config *config)
{
	struct end near, far;
	struct sealane_canceller *canceller = NULL;
	struct sealane_secret *bad = NULL;
	struct iovec none = {NULL, 5};
	int fds[2];

	CHECK(sealane_config_new(NULL) == -EINVAL);
	CHECK(sealane_config_set(NULL, "lanes", "1") == -EINVAL);
	CHECK(sealane_config_set(config, NULL, "1") == -EINVAL);
	CHECK(sealane_config_set(config, "no_such_key", "1") == -SEALANE_E_CONFIG);
	CHECK(strstr(sealane_last_error(), "frame_bytes"));
	CHECK(sealane_config_set(config, "engine", "smoke") == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set(config, "lanes", "65") == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set_lanes(config, 0) == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set_frame_bytes(config, 65537) == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set_slots_per_lane(config, 1) == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set_provider(config, 99) == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set_engine(config, -1) == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set_zero_copy(config, 3) == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set_peer_timeout_ms(config, 10) == -SEALANE_E_CONFIG);
	CHECK(sealane_config_set_congestion(config, NULL) == 0);
	CHECK(sealane_config_set_sqpoll(config, false) == 0);
	CHECK(sealane_config_set_socket_buffer_bytes(config, 0) == 0);
	CHECK(sealane_config_set_bandwidth_bytes_per_s(config, 0) == 0);

	CHECK(sealane_secret_from_bytes((const uint8_t *)"short", 5, &bad) == -SEALANE_E_CONFIG);
	CHECK(sealane_secret_from_bytes((const uint8_t *)"x", (size_t)-1, &bad) == -SEALANE_E_CONFIG);
	CHECK(sealane_secret_from_bytes(NULL, 32, &bad) == -EINVAL && bad == NULL);
	CHECK(sealane_secret_read("/no/such/file", &bad) == -ENOENT && bad == NULL);
	CHECK(sealane_secret_write_new(NULL, "x") == -EINVAL);

	sockets(fds);
	memset(&near, 0, sizeof near);
	CHECK(sealane_streams_open(fds[0], 7, trust, config, NULL, &near.streams, &near.stream) ==
	      -EINVAL);
	CHECK(sealane_streams_open(fds[0], SEALANE_ROLE_SOURCE, NULL, config, NULL, &near.streams,
	                           &near.stream) == -EINVAL);
	CHECK(sealane_streams_open(-1, SEALANE_ROLE_SOURCE, trust, config, NULL, &near.streams,
	                           &near.stream) == -EBADF);
	/* Nobody answers. */
	CHECK(sealane_config_set_handshake_timeout_ms(config, 50) == 0);
	CHECK(sealane_streams_open(fds[0], SEALANE_ROLE_SOURCE, trust, config, NULL, &near.streams,
	                           &near.stream) == -SEALANE_E_NOT_AUTHENTICATED);
	CHECK(sealane_config_set_handshake_timeout_ms(config, 10000) == 0);
	CHECK(sealane_canceller_new(&canceller) == 0);
	CHECK(sealane_canceller_cancel(canceller) == 0);
	CHECK(sealane_streams_open(fds[0], SEALANE_ROLE_SOURCE, trust, config, canceller,
	                           &near.streams, &near.stream) == -SEALANE_E_CANCELLED);
	CHECK(near.streams == NULL && near.stream == NULL);
	CHECK(sealane_canceller_cancel(NULL) == -EINVAL);
	sealane_canceller_destroy(&canceller);
	sealane_canceller_destroy(&canceller);
	sealane_canceller_destroy(NULL);
	close(fds[0]);
	close(fds[1]);

	connect_ends(&near, &far, trust, config);
	CHECK(sealane_stream_writev(NULL, NULL, 0) == -EINVAL);
	CHECK(sealane_stream_writev(near.stream, NULL, 1) == -EINVAL);
	CHECK(sealane_stream_writev(near.stream, &none, 1) == -EINVAL);
	CHECK(sealane_stream_writev(near.stream, &none, -1) == -EINVAL);
	CHECK(sealane_stream_writev(near.stream, NULL, 0) == 0);
	CHECK(sealane_stream_readv(near.stream, &none, 1025) == -EINVAL);
	CHECK(sealane_stream_peek(near.stream, NULL, 4) == -EINVAL);
	CHECK(sealane_stream_shutdown(near.stream, 9) == -EINVAL);
	CHECK(sealane_stream_cancel(near.stream, NULL) == -EINVAL);
	CHECK(sealane_stream_get_statistics(near.stream, NULL) == -EINVAL);
	CHECK(sealane_streams_migration_id(near.streams, NULL) == -EINVAL);
	CHECK(sealane_stream_flush(NULL) == -EINVAL && sealane_stream_number(NULL) == -EINVAL);
	CHECK(sealane_stream_read_fd(NULL) == -EINVAL && sealane_stream_write_fd(NULL) == -EINVAL);
	CHECK(sealane_stream_set_nonblocking(NULL, true) == -EINVAL);
	CHECK(sealane_streams_complete(NULL) == -EINVAL);
	CHECK(sealane_streams_frame_bytes(NULL) == -EINVAL && sealane_streams_provider(NULL) == NULL);

	destroy_end(&near);
	destroy_end(&far);
}

static void handshakes_wait_elsewhere(const struct sealane_trust *trust,
                                      const struct sealane_config *config)
{
	struct sealane_handshake *near = NULL, *far = NULL, *second = NULL, *third = NULL;
	struct sealane_streams *near_streams = NULL, *far_streams = NULL;
	struct sealane_stream *streams[4] = {NULL, NULL, NULL, NULL};
	int fds[2], more[2];

	sockets(fds);
	CHECK(sealane_handshake_start(9, fds[0], SEALANE_ROLE_SOURCE, trust, config, &near) ==
	      -EINVAL);
	CHECK(sealane_handshake_start(SEALANE_SIDE_CONNECTED, fds[0], SEALANE_ROLE_SOURCE, trust,
	                              config, &near) == 0);
	CHECK(sealane_handshake_finish(near, &near_streams, &streams[0]) == -EINPROGRESS);
	struct pollfd waits = {sealane_handshake_fd(near), POLLIN, 0};
	CHECK(poll(&waits, 1, 0) == 0);
	CHECK(sealane_handshake_start(SEALANE_SIDE_ACCEPTED, fds[1], SEALANE_ROLE_TARGET, trust,
	                              config, &far) == 0);
	close(fds[0]);
	close(fds[1]);
	CHECK(poll(&waits, 1, 10000) == 1);
	CHECK(sealane_handshake_finish(near, &near_streams, &streams[0]) == 0);
	CHECK(sealane_handshake_finish(near, &near_streams, &streams[0]) == -EINVAL);
	CHECK(sealane_handshake_finish(near, &near_streams, &streams[0]) == -EINVAL);
	waits.fd = sealane_handshake_fd(far);
	CHECK(poll(&waits, 1, 10000) == 1);
	CHECK(sealane_handshake_finish(far, &far_streams, &streams[1]) == 0);
	sockets(more);
	CHECK(sealane_handshake_join(SEALANE_SIDE_ACCEPTED, far_streams, more[1], &second) == 0);
	CHECK(sealane_handshake_join(SEALANE_SIDE_CONNECTED, near_streams, more[0], &third) == 0);
	waits.fd = sealane_handshake_fd(second);
	CHECK(poll(&waits, 1, 10000) == 1);
	CHECK(sealane_handshake_finish(second, NULL, &streams[2]) == 0);
	waits.fd = sealane_handshake_fd(third);
	CHECK(poll(&waits, 1, 10000) == 1);
	CHECK(sealane_handshake_finish(third, NULL, &streams[3]) == 0);
	byte_crosses(streams[3], streams[2], 7);
	close(more[0]);
	close(more[1]);
	/* One that is given up: its thread and its descriptor are gone when that returns. */
	sealane_handshake_destroy(&near);
	sockets(more);
	CHECK(sealane_handshake_start(SEALANE_SIDE_ACCEPTED, more[1], SEALANE_ROLE_TARGET, trust,
	                              config, &near) == 0);
	close(more[1]);
	struct pollfd other = {more[0], POLLIN, 0};
	CHECK(poll(&other, 1, 0) == 0);
	CHECK(sealane_handshake_finish(near, NULL, &streams[0]) == -EINPROGRESS);
	sealane_handshake_destroy(&near);
	char nothing;
	CHECK(poll(&other, 1, 0) == 1 && read(more[0], &nothing, 1) == 0);
	close(more[0]);
	CHECK(near == NULL && sealane_handshake_fd(NULL) == -EINVAL);
	CHECK(sealane_handshake_finish(NULL, NULL, &streams[0]) == -EINVAL);
	CHECK(sealane_handshake_join(SEALANE_SIDE_ACCEPTED, NULL, 0, &near) == -EINVAL);
	sealane_handshake_destroy(&far);
	sealane_handshake_destroy(&second);
	sealane_handshake_destroy(&third);
	for (int n = 0; n < 4; n++)
		sealane_stream_destroy(&streams[n]);
	sealane_streams_destroy(&near_streams);
	sealane_streams_destroy(&far_streams);
}

static void doctor_looks(int engine)
{
	struct sealane_doctor doctor = {.size = sizeof doctor};
	CHECK(sealane_doctor_run(NULL) == -EINVAL);
	CHECK(sealane_doctor_run(&doctor) == 0);
	if (engine == SEALANE_ENGINE_URING)
		CHECK(doctor.uring_errno == 0 && doctor.operations_missing == 0);
	CHECK(doctor.memlock_bytes > 0 && doctor.lane_locked_bytes > 700000);
	CHECK(doctor.aes == (sealane_doctor_provider()[0] != 0));
	doctor.size = 1;
	CHECK(sealane_doctor_run(&doctor) == -EINVAL);
}

static void identities_are_told_apart(const char *place)
{
	struct sealane_secret *secret = NULL;
	char path[256];
	FILE *file;

	snprintf(path, sizeof path, "%s/keys.psk", place);
	file = fopen(path, "w");
	CHECK(file != NULL && chmod(path, 0600) == 0);
	CHECK(fprintf(file, "qemu:%064d\nother:%064d\n", 1, 2) > 0 && fclose(file) == 0);
	CHECK(sealane_secret_read(path, &secret) == -SEALANE_E_CONFIG);
	CHECK(sealane_secret_read_identity(path, "third", &secret) == -SEALANE_E_CONFIG);
	CHECK(secret == NULL && strstr(sealane_last_error(), "other") != NULL);
	CHECK(sealane_secret_read_identity(path, NULL, &secret) == -EINVAL);
	CHECK(sealane_secret_read_identity(path, "other", &secret) == 0 && secret != NULL);
	sealane_secret_destroy(&secret);
}

static void tests(int engine, const char *place)
{
	struct sealane_config *config = NULL;
	struct sealane_secret *secret = NULL, *read_back = NULL;
	struct sealane_trust *trust, *read_trust;
	char path[4096];
	struct stat found;

	CHECK(strcmp(sealane_version(), "0.1.0") == 0 && SEALANE_VERSION_MINOR == 1);
	CHECK(sealane_version_number() == SEALANE_VERSION_NUMBER && SEALANE_VERSION_NUMBER == 0x100);
	CHECK(strcmp(sealane_last_error(), "") == 0);
	config = new_config(engine);
	CHECK(sealane_config_set_frame_bytes(config, 65536) == 0);
	CHECK(sealane_config_set(config, "slots_per_lane", "4") == 0);
	CHECK(sealane_config_set(config, "zero_copy", "off") == 0);
	CHECK(sealane_secret_generate(&secret) == 0);
	trust = trust_in(secret);
	mistakes_are_errors(trust, config);
	asked_for();
	more_streams_and_readiness(trust, config);
	handshakes_wait_elsewhere(trust, config);
	doctor_looks(engine);
	snprintf(path, sizeof path, "%s/secret", place);
	CHECK(sealane_secret_write_new(secret, path) == 0);
	CHECK(stat(path, &found) == 0 && (found.st_mode & 0777) == 0600);
	CHECK(sealane_secret_write_new(secret, path) == -EEXIST);
	CHECK(sealane_secret_read(path, &read_back) == 0);
	read_trust = trust_in(read_back);
	bytes_cross(read_trust, config);
	sealane_trust_destroy(&read_trust);
	sealane_secret_destroy(&read_back);
	identities_are_told_apart(place);
	sealane_trust_destroy(&trust);
	sealane_secret_destroy(&secret);
	sealane_config_destroy(&config);
	CHECK(config == NULL && secret == NULL && read_back == NULL);
}

int main(int count, char **arguments)
{
	return run_tests(count, arguments, tests);
}
