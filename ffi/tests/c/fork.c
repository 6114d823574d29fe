/* After a fork the handles are the parent's, whichever way the child was made: fork(2), a clone(2)
 * that runs no atfork handlers, and a child that has its parent's process id in a namespace of its
 * own. The child's own handles serve, and the parent's go on. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

struct handles {
	int engine;
	struct end near, far;
	struct sealane_config *config;
	struct sealane_secret *secret;
	struct sealane_trust *trust;
	struct sealane_dialler *dialler;
	struct sealane_canceller *canceller;
	struct sealane_listener *listener;
};

static void new_handles(struct handles *all)
{
	all->config = new_config(all->engine);
	CHECK(sealane_secret_generate(&all->secret) == 0);
	all->trust = trust_in(all->secret);
	all->dialler = dialler_to(1);
	CHECK(sealane_canceller_new(&all->canceller) == 0);
	CHECK(sealane_listener_bind("127.0.0.1:0", &all->listener) == 0);
	connect_ends(&all->near, &all->far, all->trust, all->config);
}

static void destroy_handles(struct handles *all)
{
	destroy_end(&all->near);
	destroy_end(&all->far);
	sealane_listener_destroy(&all->listener);
	sealane_canceller_destroy(&all->canceller);
	sealane_dialler_destroy(&all->dialler);
	sealane_trust_destroy(&all->trust);
	sealane_secret_destroy(&all->secret);
	sealane_config_destroy(&all->config);
	CHECK(all->listener == NULL && all->canceller == NULL && all->secret == NULL);
	CHECK(all->trust == NULL && all->dialler == NULL);
}

/* What a child finds. */
static void all_are_the_parents(struct handles *all)
{
	char byte = 1;
	struct iovec part = {&byte, 1};
	struct sealane_stream *none = NULL;
	struct sealane_trust *own = NULL;
	struct sealane_lanes *lanes = NULL;
	CHECK(sealane_stream_writev(all->near.stream, &part, 1) == -SEALANE_E_FORKED);
	CHECK(strstr(sealane_last_error(), "before a fork"));
	CHECK(sealane_stream_readv(all->near.stream, &part, 1) == -SEALANE_E_FORKED);
	CHECK(sealane_stream_shutdown(all->far.stream, SHUT_RDWR) == -SEALANE_E_FORKED);
	CHECK(sealane_streams_join(all->near.streams, 0, NULL, &none) == -SEALANE_E_FORKED);
	CHECK(sealane_streams_provider(all->near.streams) == NULL);
	CHECK(sealane_config_set_lanes(all->config, 2) == -SEALANE_E_FORKED);
	CHECK(sealane_secret_write_new(all->secret, "/") == -SEALANE_E_FORKED);
	CHECK(sealane_trust_new(all->secret, NULL, &own) == -SEALANE_E_FORKED && own == NULL);
	CHECK(sealane_dialler_bind(all->dialler, ":7000") == -SEALANE_E_FORKED);
	CHECK(sealane_lanes_dial(all->dialler, SEALANE_ROLE_SOURCE, all->trust, NULL, NULL, &lanes) ==
	      -SEALANE_E_FORKED);
	CHECK(sealane_canceller_cancel(all->canceller) == -SEALANE_E_FORKED);
	CHECK(sealane_listener_port(all->listener) == -SEALANE_E_FORKED);
	destroy_handles(all);
}

/* A child ends well. It may not free what is the parent's: after an exec that is no leak. */
static void leave(void)
{
	execlp("true", "true", (char *)NULL);
	_exit(127);
}

static void child_ends_well(pid_t child)
{
	int status = -1;
	CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static pid_t clone_without_handlers(void)
{
	return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

static void a_child_has_nothing(int engine, pid_t (*make)(void))
{
	struct handles all = {.engine = engine};
	new_handles(&all);
	pid_t child = make();
	if (child == 0) {
		all_are_the_parents(&all);
		leave();
	}
	child_ends_well(child);
	byte_crosses(all.near.stream, all.far.stream, 42);
	destroy_handles(&all);
}

static void a_child_has_its_own(int engine)
{
	struct handles all = {.engine = engine};
	struct sealane_config *parents = new_config(engine);
	pid_t child = fork();
	if (child == 0) {
		new_handles(&all);
		/* The child's first handles make none of the parent's its own. */
		CHECK(sealane_config_set_lanes(parents, 2) == -SEALANE_E_FORKED);
		/* It is a parent itself. */
		pid_t grandchild = fork();
		if (grandchild == 0) {
			struct sealane_canceller *own = NULL;
			CHECK(sealane_canceller_new(&own) == 0);
			all_are_the_parents(&all);
			sealane_canceller_destroy(&own);
			leave();
		}
		child_ends_well(grandchild);
		byte_crosses(all.near.stream, all.far.stream, 43);
		destroy_handles(&all);
		leave();
	}
	child_ends_well(child);
	CHECK(sealane_config_set_lanes(parents, 2) == 0);
	sealane_config_destroy(&parents);
}

/* The next child is the first process of a new namespace. */
static int new_namespace(void)
{
	return unshare(CLONE_NEWPID) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWPID) == 0;
}

static void a_child_with_its_parents_process_id(int engine)
{
	pid_t between = fork();
	if (between == 0) {
		if (!new_namespace())
			_exit(77);
		pid_t first = fork();
		if (first == 0) {
			struct handles all = {.engine = engine};
			CHECK(getpid() == 1);
			new_handles(&all);
			CHECK(new_namespace());
			pid_t second = fork();
			if (second == 0) {
				CHECK(getpid() == 1);
				all_are_the_parents(&all);
				leave();
			}
			child_ends_well(second);
			byte_crosses(all.near.stream, all.far.stream, 44);
			destroy_handles(&all);
			leave();
		}
		child_ends_well(first);
		leave();
	}
	int status = -1;
	CHECK(between > 0 && waitpid(between, &status, 0) == between && WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		printf("SKIP: fork_into_a_pid_namespace: needs root, or user namespaces\n");
	else
		CHECK(status == 0);
}

static void tests(int engine, const char *place)
{
	a_child_has_its_own(engine);
	a_child_has_nothing(engine, fork);
	a_child_has_nothing(engine, clone_without_handlers);
	a_child_with_its_parents_process_id(engine);
	(void)place;
}

int main(int count, char **arguments)
{
	return run_tests(count, arguments, tests);
}
