/* The C end of ffi/tests/peers.rs, whose other end is Rust in another process:
 *
 *   peer PLACE engine=NAME source PORT   sends PLACE/near, with device state
 *   peer PLACE engine=NAME target        says its port; receives into PLACE/far and PLACE/state
 *   peer PLACE engine=NAME connected     a stream over descriptor 0: each byte comes back changed
 *   peer PLACE engine=NAME accepted      the same, at the other side of the handshake
 *
 * The secret is in PLACE/secret. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "check.h"

/* What is to be done, and the port of the other end. */
static const char *what, *port;

static const char STATE[] = "registers of a guest in C";

static int open_file(const char *place, const char *name, int flags)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", place, name);
	int fd = open(path, flags | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	return fd;
}

static struct sealane_region *new_region(const char *place, const char *name)
{
	struct sealane_region *region = NULL;
	struct stat found;
	int fd = open_file(place, name, O_RDWR);
	CHECK(fstat(fd, &found) == 0);
	CHECK(sealane_region_from_fd("ram", fd, 0, (uint64_t)found.st_size, &region) == 0);
	close(fd);
	return region;
}

static void source(const char *place, const struct sealane_trust *trust,
                   const struct sealane_config *config)
{
	struct sealane_region *region = new_region(place, "near");
	struct sealane_source *source = NULL;
	struct sealane_lanes *lanes = dial_lanes(atoi(port), trust, config);
	const struct sealane_region *list[1] = {region};
	CHECK(sealane_source_start(lanes, list, 1, config, NULL, &source) == 0);
	sealane_lanes_destroy(&lanes);
	CHECK(sealane_source_send_all(source, NULL) == 0);
	/* The guest wrote on. */
	int fd = open_file(place, "near", O_RDWR);
	CHECK(pwrite(fd, "written later", 13, 3 * 4096 + 5) == 13);
	close(fd);
	struct sealane_run run = {0, 3, 1};
	CHECK(sealane_source_send_runs(source, &run, 1, NULL) == 0);
	CHECK(sealane_source_commit(source, STATE, sizeof STATE) == 0);
	CHECK(sealane_source_hand_over(source, NULL) == 0);
	sealane_source_destroy(&source);
	sealane_region_destroy(&region);
}

static void target(const char *place, const struct sealane_trust *trust,
                   const struct sealane_config *config)
{
	struct sealane_region *region = new_region(place, "far");
	struct sealane_listener *listener = NULL;
	struct sealane_lanes *lanes = NULL;
	struct sealane_target *target = NULL;
	CHECK(sealane_listener_bind("127.0.0.1:0", &listener) == 0);
	printf("%d\n", sealane_listener_port(listener));
	fflush(stdout);
	CHECK(sealane_lanes_accept(listener, SEALANE_ROLE_TARGET, trust, config, NULL, &lanes) == 0);
	CHECK(sealane_target_start(lanes, config, NULL, &target) == 0);
	sealane_lanes_destroy(&lanes);
	const struct sealane_region *list[1] = {region};
	CHECK(sealane_target_accept(target, list, 1) == 0);
	ssize_t bytes = sealane_target_receive(target);
	CHECK(bytes > 0);
	char *state = malloc((size_t)bytes);
	CHECK(state != NULL && sealane_target_state(target, state, (size_t)bytes) == bytes);
	int fd = open_file(place, "state", O_WRONLY | O_CREAT | O_EXCL);
	CHECK(write(fd, state, (size_t)bytes) == bytes);
	close(fd);
	free(state);
	CHECK(sealane_target_ready(target) == 0 && sealane_target_done(target, NULL) == 0);
	sealane_target_destroy(&target);
	sealane_region_destroy(&region);
	sealane_listener_destroy(&listener);
}

static void stream(int connected, const struct sealane_trust *trust,
                   const struct sealane_config *config)
{
	struct sealane_streams *streams = NULL;
	struct sealane_stream *stream = NULL;
	static unsigned char bytes[50000];
	ssize_t got;
	if (connected)
		CHECK(sealane_streams_open(0, SEALANE_ROLE_SOURCE, trust, config, NULL, &streams,
		                           &stream) == 0);
	else
		CHECK(sealane_streams_answer(0, SEALANE_ROLE_TARGET, trust, config, NULL, &streams,
		                             &stream) == 0);
	close(0);
	struct iovec all = {bytes, sizeof bytes};
	while ((got = sealane_stream_readv(stream, &all, 1)) > 0) {
		struct iovec part = {bytes, (size_t)got};
		for (ssize_t n = 0; n < got; n++)
			bytes[n] ^= 0x5A;
		CHECK(sealane_stream_writev(stream, &part, 1) == got);
	}
	CHECK(got == 0);
	CHECK(sealane_stream_shutdown(stream, SHUT_WR) == 0);
	sealane_stream_destroy(&stream);
	sealane_streams_destroy(&streams);
}

static void tests(int engine, const char *place)
{
	struct sealane_config *config = new_config(engine);
	struct sealane_secret *secret = NULL;
	struct sealane_trust *trust;
	char path[4096];
	CHECK(sealane_config_set_frame_bytes(config, 131072) == 0);
	CHECK(sealane_config_set_lanes(config, 2) == 0);
	snprintf(path, sizeof path, "%s/secret", place);
	CHECK(sealane_secret_read(path, &secret) == 0);
	trust = trust_in(secret);
	sealane_secret_destroy(&secret);
	if (strcmp(what, "source") == 0)
		source(place, trust, config);
	else if (strcmp(what, "target") == 0)
		target(place, trust, config);
	else
		stream(strcmp(what, "connected") == 0, trust, config);
	sealane_trust_destroy(&trust);
	sealane_config_destroy(&config);
}

int main(int count, char **arguments)
{
	CHECK(count >= 4);
	what = arguments[3];
	port = count > 4 ? arguments[4] : "";
	return run_tests(count, arguments, tests);
}
