/*
 * A stream between two threads over a socketpair: pipe [KEY=VALUE ..] < FROM > TO
 *
 * Copies its input to its output; what is on the socket between them is sealed. The socket could
 * be any connected one, between two hosts too. Exits 0 when all is copied, 1 after an error, 2 for
 * wrong arguments.
 */
#define _GNU_SOURCE /* example.h has memfd_create */
#include <pthread.h>
#include <sys/socket.h>

#include "example.h"

enum { BUFFER_BYTES = 65536 };

struct end {
	int fd;
	const struct sealane_trust *trust;
	const struct sealane_config *config;
	int status;
};

/* Writes all of the input, and then that this was all. */
static int write_all(const struct sealane_stream *stream)
{
	static char buffer[BUFFER_BYTES];
	struct iovec part = {buffer, 0};
	ssize_t got;

	while ((got = read(STDIN_FILENO, buffer, sizeof buffer)) > 0) {
		part.iov_len = (size_t)got;
		/* It blocks, so it takes all or fails. */
		if (sealane_stream_writev(stream, &part, 1) < 0)
			return complain("write");
	}
	if (got < 0) {
		perror("input");
		sealane_stream_cancel(stream, "the input cannot be read");
		return 1;
	}
	/* Without this the other end sees an error: nobody can cut a stream short unseen. */
	return sealane_stream_shutdown(stream, SHUT_WR) < 0 ? complain("shutdown") : 0;
}

/* Reads up to the end that the other end said. */
static int read_all(const struct sealane_stream *stream)
{
	static char buffer[BUFFER_BYTES];
	struct iovec part = {buffer, sizeof buffer};
	ssize_t got;

	while ((got = sealane_stream_readv(stream, &part, 1)) > 0) {
		if (fwrite(buffer, 1, (size_t)got, stdout) != (size_t)got) {
			perror("output");
			sealane_stream_cancel(stream, "the output cannot be written");
			return 1;
		}
	}
	if (got < 0)
		return complain("read");
	if (fflush(stdout) != 0) {
		perror("output");
		return 1;
	}
	return 0;
}

static void *send_side(void *argument)
{
	struct end *end = argument;
	struct sealane_streams *streams = NULL;
	struct sealane_stream *stream = NULL;

	if (sealane_streams_open(end->fd, SEALANE_ROLE_SOURCE, end->trust, end->config, NULL,
	                         &streams, &stream) < 0)
		end->status = complain("open");
	close(end->fd); /* the stream has a duplicate */
	if (end->status == 0)
		end->status = write_all(stream);
	sealane_stream_destroy(&stream);
	sealane_streams_destroy(&streams);
	return NULL;
}

static void *receive_side(void *argument)
{
	struct end *end = argument;
	struct sealane_streams *streams = NULL;
	struct sealane_stream *stream = NULL;

	if (sealane_streams_answer(end->fd, SEALANE_ROLE_TARGET, end->trust, end->config, NULL,
	                           &streams, &stream) < 0)
		end->status = complain("answer");
	close(end->fd);
	if (end->status == 0)
		end->status = read_all(stream);
	sealane_stream_destroy(&stream);
	sealane_streams_destroy(&streams);
	return NULL;
}

static int run(const struct sealane_trust *trust, const struct sealane_config *config)
{
	struct end near = {-1, trust, config, 0}, far = {-1, trust, config, 0};
	pthread_t thread;
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
		perror("socketpair");
		return 1;
	}
	near.fd = fds[0];
	far.fd = fds[1];
	if (pthread_create(&thread, NULL, receive_side, &far) != 0) {
		fputs("no thread\n", stderr);
		close(fds[0]);
		close(fds[1]);
		return 1;
	}
	send_side(&near);
	pthread_join(thread, NULL);
	return near.status | far.status;
}

int main(int count, char **arguments)
{
	struct sealane_secret *secret = NULL;
	struct sealane_trust *trust = NULL;
	struct sealane_config *config = NULL;
	int status;

	(void)count;
	status = sealane_config_new(&config) < 0 ? complain("settings")
	                                         : configure(config, arguments + 1);
	if (status == 0 && sealane_secret_generate(&secret) < 0)
		status = complain("secret");
	if (status == 0 && sealane_trust_new(secret, NULL, &trust) < 0)
		status = complain("trust");
	if (status == 0)
		status = run(trust, config);
	sealane_trust_destroy(&trust);
	sealane_secret_destroy(&secret);
	sealane_config_destroy(&config);
	return status;
}
