/* What the C tests share. A program is called as `program PLACE engine=NAME`: a directory for its
 * files and `uring` or `syscalls`. It prints what failed, or lines `SKIP: name: reason`; it exits
 * with 0 where nothing failed, and has freed everything by then. */
#ifndef CHECK_H
#define CHECK_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sealane.h>

#define CHECK(what)                                                                               \
	do {                                                                                          \
		if (!(what)) {                                                                            \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, sealane_last_error());  \
			exit(1);                                                                              \
		}                                                                                         \
	} while (0)

/* One end of a session of streams. */
struct end {
	int fd;
	int role;
	const struct sealane_trust *trust;
	const struct sealane_config *config;
	struct sealane_streams *streams;
	struct sealane_stream *stream;
	int result;
};

/* What `run_tests` hands to its thread. */
struct tests {
	void (*run)(int engine, const char *place);
	int engine;
	const char *place;
};

static inline int engine_of(int count, char **arguments)
{
	CHECK(count >= 3 && strncmp(arguments[2], "engine=", 7) == 0);
	return strcmp(arguments[2] + 7, "uring") == 0 ? SEALANE_ENGINE_URING : SEALANE_ENGINE_SYSCALLS;
}

static inline void *tests_thread(void *argument)
{
	struct tests *tests = argument;
	tests->run(tests->engine, tests->place);
	return NULL;
}

/* All of a program, in a thread that ends: what the library keeps for a thread is freed then, and
 * for the first thread of a program never. */
static inline int run_tests(int count, char **arguments, void (*run)(int engine, const char *place))
{
	struct tests tests = {run, engine_of(count, arguments), arguments[1]};
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, tests_thread, &tests) == 0);
	pthread_join(thread, NULL);
	return 0;
}

static inline struct sealane_config *new_config(int engine)
{
	struct sealane_config *config = NULL;
	CHECK(sealane_config_new(&config) == 0);
	CHECK(sealane_config_set_engine(config, engine) == 0);
	return config;
}

/* Trust by that secret. */
static inline struct sealane_trust *trust_in(const struct sealane_secret *secret)
{
	struct sealane_trust *trust = NULL;
	CHECK(sealane_trust_new(secret, NULL, &trust) == 0);
	return trust;
}

/* Trust by a secret of its own. */
static inline struct sealane_trust *new_trust(void)
{
	struct sealane_secret *secret = NULL;
	CHECK(sealane_secret_generate(&secret) == 0);
	struct sealane_trust *trust = trust_in(secret);
	sealane_secret_destroy(&secret);
	return trust;
}

/* Where a listener of this machine listens. */
static inline struct sealane_dialler *dialler_to(int port)
{
	struct sealane_dialler *dialler = NULL;
	char address[64];
	CHECK(port > 0);
	snprintf(address, sizeof address, "127.0.0.1:%d", port);
	CHECK(sealane_dialler_new(address, &dialler) == 0);
	return dialler;
}

/* The lanes of a new session with a listener of this machine. */
static inline struct sealane_lanes *dial_lanes(int port, const struct sealane_trust *trust,
                                               const struct sealane_config *config)
{
	struct sealane_dialler *dialler = dialler_to(port);
	struct sealane_lanes *lanes = NULL;
	CHECK(sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, trust, config, NULL, &lanes) == 0);
	sealane_dialler_destroy(&dialler);
	return lanes;
}

static inline void *answer(void *argument)
{
	struct end *end = argument;
	end->result = sealane_streams_answer(end->fd, end->role, end->trust, end->config, NULL,
	                                     &end->streams, &end->stream);
	return NULL;
}

/* The connection ends with the last descriptor of it. */
static inline void *answer_and_close(void *argument)
{
	struct end *end = argument;
	answer(end);
	close(end->fd);
	return NULL;
}

static inline void sockets(int fds[2])
{
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
}

/* Both ends of a new session, over sockets that are connected and closed here: the ends have
 * descriptors of their own. */
static inline void connect_over(int near_fd, int far_fd, struct end *near, struct end *far,
                                const struct sealane_trust *trust,
                                const struct sealane_config *config)
{
	pthread_t thread;
	*near = (struct end){near_fd, SEALANE_ROLE_SOURCE, trust, config, NULL, NULL, 0};
	*far = (struct end){far_fd, SEALANE_ROLE_TARGET, trust, config, NULL, NULL, 0};
	CHECK(pthread_create(&thread, NULL, answer, far) == 0);
	near->result = sealane_streams_open(near->fd, near->role, trust, config, NULL,
	                                    &near->streams, &near->stream);
	CHECK(near->result == 0);
	pthread_join(thread, NULL);
	CHECK(far->result == 0);
	close(near_fd);
	close(far_fd);
}

static inline void connect_ends(struct end *near, struct end *far,
                                const struct sealane_trust *trust,
                                const struct sealane_config *config)
{
	int fds[2];
	sockets(fds);
	connect_over(fds[0], fds[1], near, far, trust, config);
}

static inline void destroy_end(struct end *end)
{
	sealane_stream_destroy(&end->stream);
	sealane_streams_destroy(&end->streams);
	CHECK(end->stream == NULL && end->streams == NULL);
}

/* A byte crosses a stream. */
static inline void byte_crosses(struct sealane_stream *from, struct sealane_stream *to, char byte)
{
	char came = 0;
	struct iovec out = {&byte, 1}, in = {&came, 1};
	CHECK(sealane_stream_writev(from, &out, 1) == 1);
	CHECK(sealane_stream_readv(to, &in, 1) == 1 && came == byte);
}

#endif
