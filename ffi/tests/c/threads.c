/* Eight threads at once, each with streams and a migration of its own, settings shared; and threads
 * that share a stream. What a thread is told of its errors is its own. */
#include <errno.h>
#include <sched.h>

#include "check.h"

enum { THREADS = 8, PAGE = 4096, PAGES = 48, MANY = 300000 };

struct all {
	const struct sealane_config *config;
	pthread_barrier_t barrier;
};

struct worker {
	struct all *all;
	int number;
	pthread_t thread;
};

/* The byte at a place of what a worker sends. */
static unsigned char pattern(int number, size_t place)
{
	return (unsigned char)(place * 7 + place / 251 + (size_t)number * 31);
}

struct sending {
	struct sealane_stream *stream;
	int number;
};

static void *send_many(void *argument)
{
	struct sending *sending = argument;
	unsigned char *bytes = malloc(MANY);
	struct iovec part = {bytes, MANY};
	CHECK(bytes != NULL);
	for (size_t n = 0; n < MANY; n++)
		bytes[n] = pattern(sending->number, n);
	CHECK(sealane_stream_writev(sending->stream, &part, 1) == MANY);
	CHECK(sealane_stream_shutdown(sending->stream, SHUT_WR) == 0);
	free(bytes);
	return NULL;
}

static void receive_many(struct sealane_stream *stream, int number)
{
	unsigned char bytes[10000];
	struct iovec part = {bytes, sizeof bytes};
	size_t came = 0;
	ssize_t got;
	while ((got = sealane_stream_readv(stream, &part, 1)) > 0)
		for (ssize_t n = 0; n < got; n++, came++)
			CHECK(bytes[n] == pattern(number, came));
	CHECK(got == 0 && came == MANY);
}

/* Both directions at once. */
static void streams_of_its_own(int number, const struct sealane_config *config)
{
	struct sealane_trust *trust = new_trust();
	struct end near, far;
	pthread_t threads[2];
	connect_ends(&near, &far, trust, config);
	struct sending there = {near.stream, number}, back = {far.stream, number + 100};
	CHECK(pthread_create(&threads[0], NULL, send_many, &there) == 0);
	CHECK(pthread_create(&threads[1], NULL, send_many, &back) == 0);
	receive_many(far.stream, number);
	receive_many(near.stream, number + 100);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	destroy_end(&near);
	destroy_end(&far);
	sealane_trust_destroy(&trust);
}

struct guest {
	struct sealane_listener *listener;
	const struct sealane_trust *trust;
	const struct sealane_config *config;
	void *memory;
};

static void *receive_guest(void *argument)
{
	struct guest *guest = argument;
	struct sealane_lanes *lanes = NULL;
	struct sealane_target *target = NULL;
	struct sealane_region *region = NULL;
	CHECK(sealane_lanes_accept(guest->listener, SEALANE_ROLE_TARGET, guest->trust, guest->config,
	                           NULL, &lanes) == 0);
	CHECK(sealane_target_start(lanes, guest->config, NULL, &target) == 0);
	sealane_lanes_destroy(&lanes);
	CHECK(sealane_region_from_memory("ram", guest->memory, PAGES * PAGE, &region) == 0);
	const struct sealane_region *list[1] = {region};
	CHECK(sealane_target_accept(target, list, 1) == 0);
	sealane_region_destroy(&region);
	CHECK(sealane_target_receive(target) == 0);
	CHECK(sealane_target_ready(target) == 0 && sealane_target_done(target, NULL) == 0);
	sealane_target_destroy(&target);
	return NULL;
}

static void a_guest_of_its_own(int number, const struct sealane_config *config)
{
	struct sealane_trust *trust = new_trust();
	struct sealane_region *region = NULL;
	struct sealane_lanes *lanes = NULL;
	struct sealane_source *source = NULL;
	struct guest guest = {NULL, NULL, config, NULL};
	unsigned char *memory = NULL;
	pthread_t thread;
	CHECK(sealane_listener_bind("127.0.0.1:0", &guest.listener) == 0);
	CHECK(posix_memalign((void **)&memory, PAGE, 2 * PAGES * PAGE) == 0);
	for (size_t n = 0; n < PAGES * PAGE; n++)
		memory[n] = pattern(number, n);
	memset(memory + PAGES * PAGE, 0, PAGES * PAGE);
	guest.trust = trust;
	guest.memory = memory + PAGES * PAGE;
	CHECK(pthread_create(&thread, NULL, receive_guest, &guest) == 0);
	lanes = dial_lanes(sealane_listener_port(guest.listener), trust, config);
	CHECK(sealane_region_from_memory("ram", memory, PAGES * PAGE, &region) == 0);
	const struct sealane_region *list[1] = {region};
	CHECK(sealane_source_start(lanes, list, 1, config, NULL, &source) == 0);
	sealane_lanes_destroy(&lanes);
	sealane_region_destroy(&region);
	CHECK(sealane_source_send_all(source, NULL) == 0);
	CHECK(sealane_source_commit(source, NULL, 0) == 0);
	CHECK(sealane_source_hand_over(source, NULL) == 0);
	sealane_source_destroy(&source);
	pthread_join(thread, NULL);
	CHECK(memcmp(memory, memory + PAGES * PAGE, PAGES * PAGE) == 0);
	sealane_listener_destroy(&guest.listener);
	sealane_trust_destroy(&trust);
	free(memory);
}

/* All have failed before the first looks. */
static void an_error_of_its_own(struct worker *worker)
{
	struct sealane_config *config = NULL;
	char key[32];
	snprintf(key, sizeof key, "key_of_thread_%d_", worker->number);
	CHECK(strcmp(sealane_last_error(), "") == 0);
	CHECK(sealane_config_new(&config) == 0);
	CHECK(sealane_config_set(config, key, "1") == -SEALANE_E_CONFIG);
	pthread_barrier_wait(&worker->all->barrier);
	CHECK(strstr(sealane_last_error(), key));
	/* A call that succeeds leaves it. */
	CHECK(sealane_config_set_lanes(config, 3) == 0 && strstr(sealane_last_error(), key));
	pthread_barrier_wait(&worker->all->barrier);
	sealane_config_destroy(&config);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	an_error_of_its_own(worker);
	streams_of_its_own(worker->number, worker->all->config);
	pthread_barrier_wait(&worker->all->barrier);
	a_guest_of_its_own(worker->number, worker->all->config);
	return NULL;
}

static void eight_at_once(const struct sealane_config *config)
{
	struct all all = {.config = config};
	struct worker workers[THREADS];
	CHECK(pthread_barrier_init(&all.barrier, NULL, THREADS) == 0);
	for (int n = 0; n < THREADS; n++) {
		workers[n] = (struct worker){.all = &all, .number = n};
		CHECK(pthread_create(&workers[n].thread, NULL, work, &workers[n]) == 0);
	}
	for (int n = 0; n < THREADS; n++)
		pthread_join(workers[n].thread, NULL);
	pthread_barrier_destroy(&all.barrier);
}

/* A stream that a reader and a writer share. */
struct shared {
	struct sealane_stream *stream;
	size_t written;
	ssize_t read_result, write_result;
};

static void *read_until_shut(void *argument)
{
	struct shared *shared = argument;
	char bytes[64];
	struct iovec part = {bytes, sizeof bytes};
	shared->read_result = sealane_stream_readv(shared->stream, &part, 1);
	return NULL;
}

static void *write_until_shut(void *argument)
{
	struct shared *shared = argument;
	static char bytes[65536];
	struct iovec part = {bytes, sizeof bytes};
	ssize_t took;
	while ((took = sealane_stream_writev(shared->stream, &part, 1)) > 0)
		__atomic_add_fetch(&shared->written, (size_t)took, __ATOMIC_RELEASE);
	shared->write_result = took;
	return NULL;
}

/* Nobody reads at the other end, so that the writer is stuck before long, and nothing comes. A
 * third thread ends both. */
static void a_third_ends_a_reader_and_a_writer(const struct sealane_config *config)
{
	struct sealane_trust *trust = new_trust();
	struct end near, far;
	struct shared shared = {0};
	pthread_t reader, writer;
	connect_ends(&near, &far, trust, config);
	shared.stream = near.stream;
	shared.read_result = shared.write_result = 1;
	CHECK(pthread_create(&reader, NULL, read_until_shut, &shared) == 0);
	CHECK(pthread_create(&writer, NULL, write_until_shut, &shared) == 0);
	while (__atomic_load_n(&shared.written, __ATOMIC_ACQUIRE) == 0)
		sched_yield();
	sealane_stream_shutdown(near.stream, SHUT_RDWR);
	pthread_join(reader, NULL);
	pthread_join(writer, NULL);
	CHECK(shared.read_result == 0 && shared.write_result == -EPIPE);
	destroy_end(&near);
	destroy_end(&far);
	sealane_trust_destroy(&trust);
}

/* Two writers, and two readers at the other end: pieces are whole, and none is lost. */
enum { PIECES = 200, PIECE = 1000 };

static void *write_pieces(void *argument)
{
	struct sending *sending = argument;
	unsigned char piece[PIECE];
	struct iovec part = {piece, sizeof piece};
	memset(piece, sending->number, sizeof piece);
	for (int n = 0; n < PIECES; n++)
		CHECK(sealane_stream_writev(sending->stream, &part, 1) == PIECE);
	return NULL;
}

struct counting {
	struct sealane_stream *stream;
	size_t came[2];
};

static void *count_bytes(void *argument)
{
	struct counting *counting = argument;
	unsigned char bytes[PIECE];
	struct iovec part = {bytes, sizeof bytes};
	ssize_t got;
	while ((got = sealane_stream_readv(counting->stream, &part, 1)) > 0)
		for (ssize_t n = 0; n < got; n++) {
			/* A write of less than a frame comes as one. */
			CHECK(bytes[n] == bytes[0] && bytes[n] < 2);
			counting->came[bytes[n]]++;
		}
	CHECK(got == 0);
	return NULL;
}

static void two_writers_and_two_readers(const struct sealane_config *config)
{
	struct sealane_trust *trust = new_trust();
	struct end near, far;
	pthread_t writers[2], readers[2];
	connect_ends(&near, &far, trust, config);
	struct sending sending[2] = {{near.stream, 0}, {near.stream, 1}};
	struct counting counting[2] = {{far.stream, {0, 0}}, {far.stream, {0, 0}}};
	for (int n = 0; n < 2; n++) {
		CHECK(pthread_create(&readers[n], NULL, count_bytes, &counting[n]) == 0);
		CHECK(pthread_create(&writers[n], NULL, write_pieces, &sending[n]) == 0);
	}
	pthread_join(writers[0], NULL);
	pthread_join(writers[1], NULL);
	CHECK(sealane_stream_shutdown(near.stream, SHUT_WR) == 0);
	pthread_join(readers[0], NULL);
	pthread_join(readers[1], NULL);
	for (int n = 0; n < 2; n++)
		CHECK(counting[0].came[n] + counting[1].came[n] == PIECES * PIECE);
	destroy_end(&near);
	destroy_end(&far);
	sealane_trust_destroy(&trust);
}

static void tests(int engine, const char *place)
{
	struct sealane_config *config = new_config(engine);
	CHECK(sealane_config_set_frame_bytes(config, 65536) == 0);
	CHECK(sealane_config_set_lanes(config, 2) == 0);
	eight_at_once(config);
	a_third_ends_a_reader_and_a_writer(config);
	two_writers_and_two_readers(config);
	sealane_config_destroy(&config);
	(void)place;
}

int main(int count, char **arguments)
{
	return run_tests(count, arguments, tests);
}
