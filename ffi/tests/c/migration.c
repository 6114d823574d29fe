/* A migration between two threads of one C program: a memfd and a mapping move, by all three kinds
 * of rounds, with device state. Then the errors that a caller can bring about. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "check.h"

enum { PAGE = 4096, FILE_PAGES = 300, MEMORY_PAGES = 70 };

static const char STATE[] = "registers, clocks and all that";

struct far {
	struct sealane_listener *listener;
	const struct sealane_trust *trust;
	const struct sealane_config *config;
	int fd;
	void *memory;
	/* What it answers the offer with. */
	enum { TAKES, REFUSES, HAS_OTHER_SIZE, HAS_NONE } answer;
	/* The target, for a thread that looks how far it is. */
	struct sealane_target *target;
};

static int new_memfd(unsigned char salt)
{
	int fd = memfd_create("guest", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	unsigned char page[PAGE];
	CHECK(fd >= 0);
	for (int n = 0; n < FILE_PAGES; n++) {
		memset(page, salt && n % 5 ? salt + n : 0, PAGE);
		CHECK(pwrite(fd, page, PAGE, (off_t)n * PAGE) == PAGE);
	}
	return fd;
}

static void *new_memory(void)
{
	void *memory = mmap(NULL, MEMORY_PAGES * PAGE, PROT_READ | PROT_WRITE,
	                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	return memory;
}

/* Both regions, the file first. */
static void new_regions(int fd, void *memory, struct sealane_region *regions[2])
{
	CHECK(sealane_region_from_fd("ram", fd, 0, FILE_PAGES * PAGE, &regions[0]) == 0);
	CHECK(sealane_region_from_memory("video", memory, MEMORY_PAGES * PAGE, &regions[1]) == 0);
}

/* The offer is taken with regions that are not the offered ones: that ends the session. */
static void accepts_wrongly(const struct far *far, struct sealane_target *target)
{
	struct sealane_region *regions[2] = {NULL, NULL};
	int missing = far->answer == HAS_NONE;
	CHECK(sealane_region_from_fd("ram", far->fd, 0, FILE_PAGES * PAGE, &regions[0]) == 0);
	CHECK(sealane_region_from_memory(missing ? "audio" : "video", far->memory, PAGE,
	                                 &regions[1]) == 0);
	const struct sealane_region *list[2] = {regions[0], regions[1]};
	for (int again = 0; again < 2; again++) {
		CHECK(sealane_target_accept(target, list, 2) == -SEALANE_E_MISUSE);
		CHECK(strstr(sealane_last_error(), missing ? "is not there" : "has 4096 bytes"));
	}
	CHECK(sealane_target_receive(target) == -SEALANE_E_MISUSE);
	sealane_region_destroy(&regions[0]);
	sealane_region_destroy(&regions[1]);
	sealane_target_destroy(&target);
}

static void *receive(void *argument)
{
	struct far *far = argument;
	struct sealane_lanes *lanes = NULL;
	struct sealane_target *target = NULL;
	struct sealane_region *regions[2] = {NULL, NULL};
	struct sealane_statistics statistics = {.size = sizeof statistics};
	char name[256], state[sizeof STATE];
	uint64_t bytes = 0;

	CHECK(sealane_lanes_accept(far->listener, SEALANE_ROLE_TARGET, far->trust, far->config, NULL,
	                           &lanes) == 0);
	CHECK(sealane_lanes_count(lanes) == 2 && sealane_lanes_frame_bytes(lanes) == 65536);
	CHECK(strcmp(sealane_lanes_provider(lanes), sealane_doctor_provider()) == 0);
	CHECK(sealane_target_start(lanes, far->config, NULL, &target) == 0);
	CHECK(sealane_lanes_count(lanes) == -EINVAL);
	CHECK(sealane_lanes_frame_bytes(lanes) == -EINVAL && sealane_lanes_provider(lanes) == NULL);
	CHECK(strstr(sealane_last_error(), "were taken"));
	sealane_lanes_destroy(&lanes);
	__atomic_store_n(&far->target, target, __ATOMIC_RELEASE);
	CHECK(sealane_target_offers(target) == 2);
	CHECK(sealane_target_offer(target, 1, name, sizeof name, &bytes) == 5);
	CHECK(strcmp(name, "video") == 0 && bytes == MEMORY_PAGES * PAGE);
	CHECK(sealane_target_offer(target, 0, name, 3, NULL) == -ENAMETOOLONG);
	CHECK(sealane_target_offer(target, 2, NULL, 0, NULL) == -EINVAL);
	CHECK(sealane_target_state(target, state, sizeof state) == -EINVAL);
	if (far->answer == HAS_OTHER_SIZE || far->answer == HAS_NONE) {
		accepts_wrongly(far, target);
		return NULL;
	}
	if (far->answer == REFUSES) {
		CHECK(sealane_target_refuse(target, "no such guest is wanted here") == 0);
		CHECK(sealane_target_ready(target) == -EINVAL);
		sealane_target_destroy(&target);
		return NULL;
	}
	new_regions(far->fd, far->memory, regions);
	/* In any order. */
	const struct sealane_region *list[2] = {regions[1], regions[0]};
	CHECK(sealane_target_done(target, NULL) == -EINVAL && sealane_target_ready(target) == -EINVAL);
	CHECK(sealane_target_receive(target) == -EINVAL);
	CHECK(sealane_target_accept(target, NULL, 2) == -EINVAL);
	CHECK(sealane_target_accept(target, list, 2) == 0);
	CHECK(sealane_target_accept(target, list, 2) == -EINVAL);
	CHECK(sealane_target_done(target, NULL) == -EINVAL && sealane_target_ready(target) == -EINVAL);
	sealane_region_destroy(&regions[0]);
	sealane_region_destroy(&regions[1]);
	CHECK(sealane_target_receive(target) == (ssize_t)sizeof STATE);
	CHECK(sealane_target_state(target, state, 4) == 4);
	CHECK(sealane_target_state(target, state, sizeof state) == (ssize_t)sizeof state);
	CHECK(memcmp(state, STATE, sizeof STATE) == 0);
	CHECK(sealane_target_done(target, NULL) == -EINVAL);
	CHECK(sealane_target_ready(target) == 0);
	CHECK(sealane_target_refuse(target, "too late") == -EINVAL);
	CHECK(sealane_target_done(target, &statistics) == 0);
	CHECK(statistics.lanes == 2 && statistics.data_pages > FILE_PAGES);
	CHECK(sealane_target_done(target, NULL) == -EINVAL);
	sealane_target_destroy(&target);
	CHECK(target == NULL);
	return NULL;
}

static void same(int near, int far, const void *near_memory, const void *far_memory)
{
	unsigned char ours[PAGE], theirs[PAGE];
	for (int n = 0; n < FILE_PAGES; n++) {
		CHECK(pread(near, ours, PAGE, (off_t)n * PAGE) == PAGE);
		CHECK(pread(far, theirs, PAGE, (off_t)n * PAGE) == PAGE);
		CHECK(memcmp(ours, theirs, PAGE) == 0);
	}
	CHECK(memcmp(near_memory, far_memory, MEMORY_PAGES * PAGE) == 0);
}

/* The lanes of a new session with a target on a thread of its own. */
static struct sealane_lanes *dial(struct far *far, pthread_t *thread, void *(*run)(void *))
{
	CHECK(pthread_create(thread, NULL, run, far) == 0);
	return dial_lanes(sealane_listener_port(far->listener), far->trust, far->config);
}

/* After the first round. The target's thread is in sealane_target_receive, and stays there until
 * the commit: to look does not wait for it. */
static void how_far(struct sealane_source *source, struct sealane_target *target)
{
	struct sealane_progress near = {.size = sizeof near}, far = {.size = sizeof far};
	CHECK(sealane_target_progress(target, &far) == 0);
	CHECK(sealane_source_progress(source, &near) == 0);
	CHECK(near.rounds == 1 && near.data_pages + near.zero_pages == FILE_PAGES + MEMORY_PAGES);
	CHECK(near.zero_pages == FILE_PAGES / 5 && memcmp(&near, &far, sizeof near) == 0);
	near.size = 16;
	CHECK(sealane_source_progress(source, &near) == -EINVAL);
	CHECK(sealane_target_progress(target, NULL) == -EINVAL);
	CHECK(sealane_source_progress(NULL, &far) == -EINVAL);
	CHECK(sealane_target_progress(NULL, &far) == -EINVAL);
}

static void a_guest_moves(const struct sealane_trust *trust, const struct sealane_config *config)
{
	struct far far = {NULL, trust, config, new_memfd(0), new_memory(), TAKES, NULL};
	struct sealane_region *regions[2] = {NULL, NULL};
	struct sealane_source *source = NULL;
	struct sealane_lanes *lanes;
	struct sealane_round round = {.size = sizeof round};
	struct sealane_statistics statistics = {.size = sizeof statistics};
	struct sealane_progress progress = {.size = sizeof progress};
	int fd = new_memfd(1);
	unsigned char *memory = new_memory();
	pthread_t thread;

	memset(memory, 0x5A, MEMORY_PAGES * PAGE);
	CHECK(sealane_listener_bind("127.0.0.1:0", &far.listener) == 0);
	new_regions(fd, memory, regions);
	const struct sealane_region *list[2] = {regions[0], regions[1]};
	lanes = dial(&far, &thread, receive);
	CHECK(sealane_source_start(lanes, list, 2, config, NULL, &source) == 0);
	sealane_lanes_destroy(&lanes);
	CHECK(sealane_source_send_all(source, &round) == 0);
	CHECK(round.round == 0 && round.pages == FILE_PAGES + MEMORY_PAGES);
	how_far(source, __atomic_load_n(&far.target, __ATOMIC_ACQUIRE));

	/* The guest writes on: by runs, then by bitmaps. */
	CHECK(pwrite(fd, "changed", 7, 17 * PAGE + 100) == 7);
	memory[69 * PAGE] = 1;
	struct sealane_run runs[3] = {{0, 17, 1}, {1, 60, 10}, {1, 69, 1}};
	CHECK(sealane_source_send_runs(source, runs, 3, &round) == 0);
	CHECK(round.round == 1 && round.pages == 11);
	runs[0].first_page = FILE_PAGES;
	CHECK(sealane_source_send_runs(source, runs, 1, NULL) == -EINVAL);
	runs[0].region = 2;
	CHECK(sealane_source_send_runs(source, runs, 1, NULL) == -EINVAL);
	CHECK(sealane_source_send_runs(source, NULL, 1, NULL) == -EINVAL);
	CHECK(pwrite(fd, "again", 5, 299 * PAGE) == 5);
	uint64_t file_words[5] = {0, 0, 0, 0, 1ull << (299 - 256)}, memory_words[2] = {1, 0};
	const uint64_t *bitmaps[2] = {file_words, memory_words};
	CHECK(sealane_source_send_bitmaps(source, bitmaps, 2, &round) == 0);
	CHECK(round.round == 2 && round.pages == 2);
	memory_words[1] = 1ull << 6;
	CHECK(sealane_source_send_bitmaps(source, bitmaps, 2, NULL) == -EINVAL);
	CHECK(strstr(sealane_last_error(), "past the last"));
	bitmaps[1] = NULL;
	CHECK(sealane_source_send_bitmaps(source, bitmaps, 2, NULL) == -EINVAL);
	/* A list for fewer regions, and a size that was never set: nothing is read or written. */
	CHECK(sealane_source_send_bitmaps(source, bitmaps, 1, NULL) == -EINVAL);
	CHECK(strstr(sealane_last_error(), "1 bitmaps"));
	round.size = 8;
	CHECK(sealane_source_send_all(source, &round) == -EINVAL);
	round.size = 4097;
	CHECK(sealane_source_send_all(source, &round) == -EINVAL);
	CHECK(sealane_source_commit(source, NULL, 5) == -EINVAL);
	CHECK(sealane_source_commit(source, STATE, (size_t)-1) == -EINVAL);
	CHECK(sealane_source_hand_over(source, NULL) == -EINVAL);
	CHECK(strstr(sealane_last_error(), "before the commit"));

	CHECK(sealane_source_commit(source, STATE, sizeof STATE) == 0);
	CHECK(sealane_source_commit(source, STATE, sizeof STATE) == -EINVAL);
	CHECK(sealane_source_send_all(source, NULL) == -EINVAL);
	statistics.size = 4;
	CHECK(sealane_source_hand_over(source, &statistics) == -EINVAL);
	statistics.size = sizeof statistics;
	CHECK(sealane_source_hand_over(source, &statistics) == 0);
	CHECK(statistics.lanes == 2 && statistics.frames > 4 && statistics.zero_pages > 50);
	CHECK(sealane_source_hand_over(source, NULL) == -EINVAL);
	CHECK(sealane_source_send_all(source, NULL) == -EINVAL);
	/* It can still be seen what it did. */
	CHECK(sealane_source_progress(source, &progress) == 0 && progress.rounds == 3);
	pthread_join(thread, NULL);
	same(fd, far.fd, memory, far.memory);
	sealane_source_destroy(&source);
	CHECK(source == NULL);
	sealane_region_destroy(&regions[0]);
	sealane_region_destroy(&regions[1]);
	sealane_listener_destroy(&far.listener);
	munmap(memory, MEMORY_PAGES * PAGE);
	munmap(far.memory, MEMORY_PAGES * PAGE);
	close(fd);
	close(far.fd);
}

static void *cancel_soon(void *canceller)
{
	usleep(50000);
	CHECK(sealane_canceller_cancel(canceller) == 0);
	return NULL;
}

static void ends_before_the_handover(const struct sealane_trust *trust,
                                     const struct sealane_config *config)
{
	struct far far = {NULL, trust, config, -1, NULL, REFUSES, NULL};
	struct sealane_region *regions[2] = {NULL, NULL}, *none = NULL;
	struct sealane_source *source = NULL;
	struct sealane_target *target = NULL;
	struct sealane_canceller *canceller = NULL;
	struct sealane_dialler *dialler = NULL;
	struct sealane_lanes *lanes = NULL;
	void *memory = new_memory();
	int fd = new_memfd(1);
	pthread_t thread;

	CHECK(sealane_listener_bind("127.0.0.1:0", &far.listener) == 0);
	CHECK(sealane_listener_bind("nonsense", NULL) == -EINVAL);
	CHECK(sealane_listener_bind(NULL, &far.listener) == -EINVAL);
	CHECK(sealane_region_from_fd("ram", fd, 0, FILE_PAGES * PAGE + 1, &none) == -EINVAL);
	CHECK(sealane_region_from_fd("ram", -1, 0, PAGE, &none) == -EBADF);
	CHECK(sealane_region_from_fd(NULL, fd, 0, PAGE, &none) == -EINVAL);
	CHECK(sealane_region_from_memory("ram", (char *)memory + 1, PAGE, &none) == -EINVAL);
	CHECK(sealane_region_from_memory("ram", NULL, PAGE, &none) == -EINVAL && none == NULL);
	new_regions(fd, memory, regions);
	const struct sealane_region *list[2] = {regions[0], regions[1]};

	/* The target refuses, and its reason comes. */
	lanes = dial(&far, &thread, receive);
	/* They are no target's, and are there still. */
	CHECK(sealane_target_start(lanes, config, NULL, &target) == -EINVAL && target == NULL);
	CHECK(strstr(sealane_last_error(), "sealane_source_start"));
	CHECK(sealane_source_start(lanes, list, 2, config, NULL, &source) == -SEALANE_E_REFUSED);
	CHECK(strstr(sealane_last_error(), "refused to go on: no such guest is wanted here") && source == NULL);
	CHECK(sealane_source_start(lanes, list, 2, config, NULL, &source) == -EINVAL);
	sealane_lanes_destroy(&lanes);
	pthread_join(thread, NULL);

	/* A canceller ends a wait. */
	CHECK(sealane_canceller_new(&canceller) == 0);
	CHECK(pthread_create(&thread, NULL, cancel_soon, canceller) == 0);
	CHECK(sealane_lanes_accept(far.listener, SEALANE_ROLE_TARGET, trust, config, canceller,
	                           &lanes) == -SEALANE_E_CANCELLED);
	pthread_join(thread, NULL);
	/* Those to come too, before anything is looked up. */
	CHECK(sealane_dialler_new("no-such-host.invalid:1", &dialler) == 0);
	CHECK(sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, trust, config, canceller, &lanes) ==
	      -SEALANE_E_CANCELLED);
	sealane_dialler_destroy(&dialler);
	sealane_canceller_destroy(&canceller);

	dialler = dialler_to(1);
	CHECK(sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, trust, config, NULL, &lanes) ==
	      -ECONNREFUSED);
	CHECK(sealane_lanes_dial(NULL, SEALANE_ROLE_SOURCE, trust, config, NULL, &lanes) == -EINVAL);
	CHECK(sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, NULL, config, NULL, &lanes) == -EINVAL);
	CHECK(sealane_lanes_dial(dialler, 3, trust, config, NULL, &lanes) == -EINVAL);
	sealane_dialler_destroy(&dialler);
	CHECK(sealane_lanes_frame_bytes(NULL) == -EINVAL && sealane_lanes_provider(NULL) == NULL);
	CHECK(sealane_lanes_count(NULL) == -EINVAL && sealane_listener_port(NULL) == -EINVAL);
	CHECK(sealane_source_start(NULL, list, 2, config, NULL, &source) == -EINVAL);
	CHECK(sealane_source_start(NULL, NULL, 0, config, NULL, &source) == -EINVAL);
	CHECK(sealane_source_send_all(NULL, NULL) == -EINVAL);
	CHECK(sealane_source_commit(NULL, NULL, 0) == -EINVAL);
	CHECK(sealane_source_hand_over(NULL, NULL) == -EINVAL);
	CHECK(sealane_source_send_bitmaps(NULL, NULL, 0, NULL) == -EINVAL);
	CHECK(sealane_target_start(NULL, config, NULL, &target) == -EINVAL);
	CHECK(sealane_target_receive(NULL) == -EINVAL && sealane_target_offers(NULL) == -EINVAL);
	CHECK(sealane_target_refuse(NULL, "x") == -EINVAL && sealane_target_ready(NULL) == -EINVAL);
	CHECK(sealane_target_accept(NULL, NULL, 0) == -EINVAL);
	CHECK(sealane_target_done(NULL, NULL) == -EINVAL);
	CHECK(sealane_target_offer(NULL, 0, NULL, 0, NULL) == -EINVAL);
	CHECK(sealane_target_state(NULL, NULL, 0) == -EINVAL);
	sealane_source_destroy(&source);
	sealane_source_destroy(NULL);
	sealane_target_destroy(&target);
	sealane_lanes_destroy(&lanes);
	sealane_region_destroy(&regions[0]);
	sealane_region_destroy(&regions[1]);
	sealane_region_destroy(&none);
	sealane_listener_destroy(&far.listener);
	munmap(memory, MEMORY_PAGES * PAGE);
	close(fd);
}

static void *receive_nothing(void *argument)
{
	struct far *far = argument;
	struct sealane_lanes *lanes = NULL;
	struct sealane_target *target = NULL;
	CHECK(sealane_lanes_accept(far->listener, SEALANE_ROLE_TARGET, far->trust, far->config, NULL,
	                           &lanes) == 0);
	CHECK(sealane_target_start(lanes, far->config, NULL, &target) == -SEALANE_E_CLOSED);
	CHECK(target == NULL);
	sealane_lanes_destroy(&lanes);
	return NULL;
}

/* Wrong calls that are refused take no lanes; those that end the session are no -EINVAL. */
static void a_wrong_call_that_ends_a_session(const struct sealane_trust *trust,
                                             const struct sealane_config *config)
{
	struct far far = {NULL, trust, config, new_memfd(0), new_memory(), HAS_OTHER_SIZE, NULL};
	struct sealane_region *regions[2] = {NULL, NULL};
	struct sealane_source *source = NULL;
	struct sealane_lanes *lanes;
	pthread_t thread;

	CHECK(sealane_listener_bind("127.0.0.1:0", &far.listener) == 0);
	new_regions(far.fd, far.memory, regions);
	const struct sealane_region *list[2] = {regions[0], regions[1]};
	for (; far.answer <= HAS_NONE; far.answer++) {
		lanes = dial(&far, &thread, receive);
		CHECK(sealane_source_start(lanes, list, 0, config, NULL, &source) == -EINVAL);
		CHECK(sealane_source_start(lanes, list, 2, config, NULL, NULL) == -EINVAL);
		CHECK(sealane_lanes_count(lanes) == 2);
		CHECK(sealane_source_start(lanes, list, 2, config, NULL, &source) == -SEALANE_E_REFUSED);
		CHECK(strstr(sealane_last_error(), "region \"video\"") && source == NULL);
		sealane_lanes_destroy(&lanes);
		pthread_join(thread, NULL);
	}
	list[1] = regions[0];
	lanes = dial(&far, &thread, receive_nothing);
	CHECK(sealane_source_start(lanes, list, 2, config, NULL, &source) == -SEALANE_E_MISUSE);
	CHECK(strstr(sealane_last_error(), "two regions are called") && source == NULL);
	CHECK(sealane_lanes_count(lanes) == -EINVAL);
	sealane_lanes_destroy(&lanes);
	pthread_join(thread, NULL);
	sealane_region_destroy(&regions[0]);
	sealane_region_destroy(&regions[1]);
	sealane_listener_destroy(&far.listener);
	munmap(far.memory, MEMORY_PAGES * PAGE);
	close(far.fd);
}

/* How many lines came: of each level, and of two kinds. */
struct log {
	pthread_mutex_t lock;
	int lines[SEALANE_LOG_DEBUG + 1];
	int committed, rounds;
};

static void count_line(void *data, int level, const char *text)
{
	struct log *log = data;
	CHECK(level >= SEALANE_LOG_ERROR && level <= SEALANE_LOG_DEBUG);
	pthread_mutex_lock(&log->lock);
	log->lines[level]++;
	log->committed += strstr(text, "committed") != NULL;
	log->rounds += strstr(text, "round placed") != NULL;
	pthread_mutex_unlock(&log->lock);
}

/* A migration says what it does, up to the level that was asked for and not beyond. */
static void it_says_what_it_does_where_asked(const struct sealane_trust *trust,
                                             const struct sealane_config *config, int level)
{
	struct log log = {.lock = PTHREAD_MUTEX_INITIALIZER};
	int asked = level != 0;
	CHECK(sealane_set_log(99, count_line, &log) == -EINVAL);
	CHECK(sealane_set_log(0, count_line, &log) == -EINVAL);
	CHECK(sealane_set_log(asked ? level : SEALANE_LOG_DEBUG, count_line, &log) == 0);
	if (!asked)
		CHECK(sealane_set_log(0, NULL, NULL) == 0);
	a_guest_moves(trust, config);
	CHECK(sealane_set_log(0, NULL, NULL) == 0);
	CHECK(log.committed == (level >= SEALANE_LOG_INFO));
	/* Three rounds at each of both ends. */
	CHECK(log.rounds == (level >= SEALANE_LOG_DEBUG ? 6 : 0));
	for (int n = 1; n <= SEALANE_LOG_DEBUG; n++)
		CHECK(n <= level || log.lines[n] == 0);
	CHECK(level < SEALANE_LOG_INFO || log.lines[SEALANE_LOG_INFO] > 0);
}

static void tests(int engine, const char *place)
{
	const int levels[] = {SEALANE_LOG_DEBUG, SEALANE_LOG_INFO, SEALANE_LOG_WARNING, 0};
	struct sealane_config *config = new_config(engine);
	struct sealane_trust *trust = NULL;
	CHECK(sealane_config_set_lanes(config, 2) == 0);
	CHECK(sealane_config_set_frame_bytes(config, 65536) == 0);
	trust = new_trust();
	ends_before_the_handover(trust, config);
	a_wrong_call_that_ends_a_session(trust, config);
	for (int n = 0; n < 4; n++) {
		/* A secret is for one migration. */
		sealane_trust_destroy(&trust);
		trust = new_trust();
		it_says_what_it_does_where_asked(trust, config, levels[n]);
	}
	sealane_trust_destroy(&trust);
	sealane_config_destroy(&config);
	(void)place;
}

int main(int count, char **arguments)
{
	return run_tests(count, arguments, tests);
}
