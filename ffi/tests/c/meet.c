/* How two ends meet: by every kind of connection, by name at one listener, and by secrets,
 * certificates and both. PLACE/pki has certificates of two hosts and of a third, where the library
 * was built with them. */
#include <errno.h>

#include "check.h"

/* The end that accepts, in a thread of its own. */
struct door {
	struct sealane_listener *listener;
	const struct sealane_trust *trust;
	const struct sealane_config *config;
	struct sealane_lanes *lanes;
	struct sealane_streams *streams;
	struct sealane_stream *streams_of_it[2];
	int result;
};

static void *accept_lanes(void *argument)
{
	struct door *door = argument;
	door->result = sealane_lanes_accept(door->listener, SEALANE_ROLE_TARGET, door->trust,
	                                    door->config, NULL, &door->lanes);
	return NULL;
}

/* Two lanes between a dialler and a listener, which go afterwards. */
static void lanes_meet(struct sealane_dialler *dialler, struct sealane_listener *listener,
                       const struct sealane_config *config)
{
	struct sealane_trust *trust = new_trust();
	struct door door = {.listener = listener, .trust = trust, .config = config};
	struct sealane_lanes *lanes = NULL;
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, accept_lanes, &door) == 0);
	CHECK(sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, trust, config, NULL, &lanes) == 0);
	pthread_join(thread, NULL);
	CHECK(door.result == 0);
	CHECK(sealane_lanes_count(lanes) == 2 && sealane_lanes_count(door.lanes) == 2);
	sealane_lanes_destroy(&lanes);
	sealane_lanes_destroy(&door.lanes);
	sealane_dialler_destroy(&dialler);
	sealane_listener_destroy(&door.listener);
	sealane_trust_destroy(&trust);
}

static void by_tcp_from_chosen_ports(const struct sealane_config *config)
{
	struct sealane_listener *listener = NULL;
	CHECK(sealane_listener_bind("127.0.0.1:0", &listener) == 0);
	struct sealane_dialler *dialler = dialler_to(sealane_listener_port(listener));
	CHECK(sealane_dialler_bind(dialler, "nonsense") == -SEALANE_E_CONFIG);
	CHECK(sealane_dialler_bind(dialler, NULL) == -EINVAL);
	CHECK(sealane_dialler_bind(NULL, ":40000-40100") == -EINVAL);
	CHECK(sealane_dialler_bind(dialler, ":40000-40100") == 0);
	lanes_meet(dialler, listener, config);
}

static void by_a_unix_socket(const char *place, const struct sealane_config *config)
{
	struct sealane_listener *listener = NULL;
	struct sealane_dialler *dialler = NULL;
	char address[4096];
	snprintf(address, sizeof address, "unix:%s/meet", place);
	CHECK(sealane_dialler_new(address, &dialler) == 0);
	struct sealane_trust *trust = new_trust();
	struct sealane_lanes *lanes = NULL;
	CHECK(sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, trust, config, NULL, &lanes) == -ENOENT);
	sealane_trust_destroy(&trust);
	CHECK(sealane_listener_bind(address, &listener) == 0);
	CHECK(sealane_listener_port(listener) == -EINVAL);
	CHECK(strstr(sealane_last_error(), "no address of TCP"));
	CHECK(sealane_dialler_bind(dialler, ":40000") == -SEALANE_E_CONFIG);
	lanes_meet(dialler, listener, config);
	/* Its file has gone with the listener. */
	CHECK(access(address + strlen("unix:"), F_OK) != 0);
}

static void by_sockets_that_are_there(const struct sealane_config *config)
{
	struct sealane_listener *listener = NULL, *none = NULL;
	struct sealane_dialler *dialler = NULL, *nowhere = NULL;
	struct sealane_trust *trust = new_trust();
	struct sealane_lanes *lanes = NULL;
	int fds[2], near[2], far[2];
	for (int n = 0; n < 2; n++) {
		sockets(fds);
		near[n] = fds[0];
		far[n] = fds[1];
	}
	CHECK(sealane_dialler_sockets(near, 2, &dialler) == 0);
	CHECK(sealane_listener_sockets(far, 2, &listener) == 0);
	for (int n = 0; n < 2; n++) {
		close(near[n]);
		close(far[n]);
	}
	struct door door = {.listener = listener, .trust = trust, .config = config};
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, accept_lanes, &door) == 0);
	CHECK(sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, trust, config, NULL, &lanes) == 0);
	pthread_join(thread, NULL);
	CHECK(door.result == 0 && sealane_lanes_count(door.lanes) == 2);
	sealane_lanes_destroy(&lanes);
	sealane_lanes_destroy(&door.lanes);
	/* Each serves once. */
	CHECK(sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, trust, config, NULL, &lanes) ==
	      -SEALANE_E_MISUSE);
	CHECK(strstr(sealane_last_error(), "pass one for each"));
	CHECK(sealane_lanes_accept(listener, SEALANE_ROLE_TARGET, trust, config, NULL, &lanes) ==
	      -SEALANE_E_MISUSE);
	sealane_dialler_destroy(&dialler);
	sealane_listener_destroy(&listener);
	sealane_trust_destroy(&trust);
	/* What is none. */
	int loose = socket(AF_INET, SOCK_STREAM, 0), closed = -1;
	CHECK(sealane_dialler_sockets(&loose, 1, &nowhere) == -SEALANE_E_CONFIG);
	CHECK(sealane_listener_sockets(&loose, 1, &none) == -SEALANE_E_CONFIG);
	CHECK(strstr(sealane_last_error(), "not connected"));
	close(loose);
	CHECK(sealane_dialler_sockets(&closed, 1, &nowhere) == -EBADF);
	CHECK(sealane_dialler_sockets(NULL, 1, &nowhere) == -EINVAL);
	CHECK(sealane_dialler_sockets(&closed, 0, &nowhere) == -EINVAL);
	CHECK(sealane_listener_sockets(NULL, 0, &none) == -EINVAL);
	CHECK(nowhere == NULL && none == NULL);
}

static void where_both_dial(const struct sealane_config *config)
{
	struct sealane_listener *listener = NULL, *none = NULL;
	struct sealane_dialler *dialler = NULL, *nowhere = NULL;
	char here[64], there[64];
	/* Loopback addresses that no other test has. */
	int process = (int)getpid();
	snprintf(here, sizeof here, "127.%d.%d.1:7800", process >> 8 & 127, process & 255);
	snprintf(there, sizeof there, "127.%d.%d.2:7800", process >> 8 & 127, process & 255);
	CHECK(sealane_dialler_rendezvous(here, there, &dialler) == 0);
	CHECK(sealane_listener_rendezvous(there, here, &listener) == 0);
	CHECK(sealane_dialler_bind(dialler, ":40000") == -SEALANE_E_CONFIG);
	lanes_meet(dialler, listener, config);
	CHECK(sealane_dialler_rendezvous(here, here, &nowhere) == -SEALANE_E_CONFIG);
	CHECK(sealane_listener_rendezvous(here, here, &none) == -SEALANE_E_CONFIG);
	CHECK(sealane_dialler_rendezvous(here, NULL, &nowhere) == -EINVAL);
	CHECK(sealane_listener_rendezvous(NULL, here, &none) == -EINVAL);
	CHECK(sealane_dialler_new("nonsense", &nowhere) == -SEALANE_E_CONFIG);
	CHECK(strstr(sealane_last_error(), "HOST:PORT"));
	CHECK(sealane_dialler_new(NULL, &nowhere) == -EINVAL);
	CHECK(sealane_dialler_new("127.0.0.1:1", NULL) == -EINVAL);
	CHECK(nowhere == NULL && none == NULL);
}

static void *accept_streams(void *argument)
{
	struct door *door = argument;
	door->result = sealane_streams_accept(door->listener, SEALANE_ROLE_TARGET, door->trust,
	                                      door->config, NULL, &door->streams,
	                                      &door->streams_of_it[0]);
	if (door->result == 0)
		door->result = sealane_streams_accept_next(door->streams, door->listener, NULL,
		                                           &door->streams_of_it[1]);
	return NULL;
}

static struct sealane_config *named(int engine, const char *name)
{
	struct sealane_config *config = new_config(engine);
	CHECK(sealane_config_set_migration_name(config, "another") == 0);
	CHECK(sealane_config_set_migration_name(config, NULL) == 0);
	CHECK(sealane_config_set_migration_name(config, name) == 0);
	return config;
}

/* The dialling end of a session with two streams. */
static void streams_meet(struct sealane_dialler *dialler, struct door *door, pthread_t thread)
{
	struct sealane_streams *streams = NULL;
	struct sealane_stream *stream[2] = {NULL, NULL};
	int result;
	/* Refused until the thread waits, where another one does. */
	do
		result = sealane_streams_dial(dialler, SEALANE_ROLE_SOURCE, door->trust, door->config, NULL,
		                              &streams, &stream[0]);
	while (result == -SEALANE_E_REFUSED || result == -SEALANE_E_NOT_AUTHENTICATED);
	CHECK(result == 0);
	CHECK(sealane_streams_dial_next(streams, NULL, &stream[1]) == 0);
	pthread_join(thread, NULL);
	CHECK(door->result == 0);
	for (int n = 0; n < 2; n++) {
		byte_crosses(stream[n], door->streams_of_it[n], (char)(1 + n));
		byte_crosses(door->streams_of_it[n], stream[n], (char)(3 + n));
		sealane_stream_destroy(&stream[n]);
		sealane_stream_destroy(&door->streams_of_it[n]);
	}
	sealane_streams_destroy(&streams);
	sealane_streams_destroy(&door->streams);
}

struct waiting {
	struct sealane_listener *listener;
	const struct sealane_trust *trust;
	const struct sealane_config *config;
	struct sealane_canceller *canceller;
	int result;
};

/* Ends the wait of another one too. */
static void *wait_alone(void *argument)
{
	struct waiting *waiting = argument;
	struct sealane_lanes *lanes = NULL;
	waiting->result = sealane_lanes_accept(waiting->listener, SEALANE_ROLE_TARGET, waiting->trust,
	                                       waiting->config, waiting->canceller, &lanes);
	CHECK(lanes == NULL && sealane_canceller_cancel(waiting->canceller) == 0);
	return NULL;
}

/* The name tells them apart: of two with the same one, the later may not wait. */
static void two_of_one_name(const struct sealane_config *config)
{
	struct waiting first = {.trust = new_trust(), .config = config}, second;
	pthread_t thread[2];
	CHECK(sealane_listener_bind("127.0.0.1:0", &first.listener) == 0);
	CHECK(sealane_canceller_new(&first.canceller) == 0);
	second = first;
	CHECK(pthread_create(&thread[0], NULL, wait_alone, &first) == 0);
	CHECK(pthread_create(&thread[1], NULL, wait_alone, &second) == 0);
	/* It is looked at while they wait. */
	CHECK(sealane_listener_port(first.listener) > 0);
	pthread_join(thread[0], NULL);
	pthread_join(thread[1], NULL);
	CHECK((first.result == -SEALANE_E_MISUSE && second.result == -SEALANE_E_CANCELLED) ||
	      (first.result == -SEALANE_E_CANCELLED && second.result == -SEALANE_E_MISUSE));
	struct sealane_trust *trust = (struct sealane_trust *)first.trust;
	sealane_trust_destroy(&trust);
	sealane_canceller_destroy(&first.canceller);
	sealane_listener_destroy(&first.listener);
}

/* Two wait at one listener, and whoever comes finds the one that has the same name. */
static void by_name_at_one_listener(int engine)
{
	struct sealane_trust *trust[2] = {new_trust(), new_trust()};
	struct sealane_config *config[2] = {named(engine, "guest one"), named(engine, "guest two")};
	struct sealane_listener *listener = NULL;
	struct door door[2];
	pthread_t thread[2];
	CHECK(sealane_listener_bind("127.0.0.1:0", &listener) == 0);
	struct sealane_dialler *dialler = dialler_to(sealane_listener_port(listener));
	for (int n = 0; n < 2; n++) {
		door[n] = (struct door){.listener = listener, .trust = trust[n], .config = config[n]};
		CHECK(pthread_create(&thread[n], NULL, accept_streams, &door[n]) == 0);
	}
	for (int n = 1; n >= 0; n--)
		streams_meet(dialler, &door[n], thread[n]);
	for (int n = 0; n < 2; n++) {
		sealane_trust_destroy(&trust[n]);
		sealane_config_destroy(&config[n]);
	}
	sealane_dialler_destroy(&dialler);
	sealane_listener_destroy(&listener);
}

/* Streams that were not begun so. */
static void streams_of_another_kind(const struct sealane_config *config)
{
	struct sealane_trust *trust = new_trust();
	struct sealane_listener *listener = NULL;
	struct sealane_stream *stream = NULL;
	struct sealane_streams *streams = NULL;
	struct end near, far;
	connect_ends(&near, &far, trust, config);
	CHECK(sealane_listener_bind("127.0.0.1:0", &listener) == 0);
	CHECK(sealane_streams_dial_next(near.streams, NULL, &stream) == -EINVAL);
	CHECK(strstr(sealane_last_error(), "not dialled from here"));
	CHECK(sealane_streams_accept_next(far.streams, listener, NULL, &stream) == -SEALANE_E_MISUSE);
	CHECK(sealane_streams_accept_next(far.streams, NULL, NULL, &stream) == -EINVAL);
	CHECK(sealane_streams_dial(NULL, SEALANE_ROLE_SOURCE, trust, config, NULL, &streams,
	                           &stream) == -EINVAL);
	CHECK(sealane_streams_accept(NULL, SEALANE_ROLE_TARGET, trust, config, NULL, &streams,
	                             &stream) == -EINVAL);
	CHECK(stream == NULL && streams == NULL);
	destroy_end(&near);
	destroy_end(&far);
	sealane_listener_destroy(&listener);
	sealane_trust_destroy(&trust);
}

/* Trust of a host of PLACE/pki in another one, and in a secret where there is one. */
static struct sealane_trust *trust_of(const char *place, const char *host, const char *peer,
                                      const struct sealane_secret *secret)
{
	struct sealane_certificates *certificates = NULL;
	struct sealane_trust *trust = NULL;
	char directory[4096];
	snprintf(directory, sizeof directory, "%s/pki/%s", place, host);
	CHECK(sealane_certificates_from_directory(directory, peer, &certificates) == 0);
	CHECK(sealane_trust_new(secret, certificates, &trust) == 0);
	sealane_certificates_destroy(&certificates);
	CHECK(certificates == NULL);
	return trust;
}

/* The same from single files, with or without what the CA has revoked. */
static int from_files(const char *place, const char *crl, struct sealane_certificates **out)
{
	char ca[4096], cert[4096], key[4096], list[4096];
	snprintf(ca, sizeof ca, "%s/pki/near.example/ca-cert.pem", place);
	snprintf(cert, sizeof cert, "%s/pki/near.example/client-cert.pem", place);
	snprintf(key, sizeof key, "%s/pki/near.example/client-key.pem", place);
	snprintf(list, sizeof list, "%s/pki/%s", place, crl ? crl : "");
	return sealane_certificates_from_files(ca, cert, key, crl ? list : NULL, "far.example", out);
}

/* What the accepting end gets, and its message. */
struct answering {
	struct end end;
	char said[1024];
};

static void *answer_and_remember(void *argument)
{
	struct answering *far = argument;
	answer_and_close(&far->end);
	snprintf(far->said, sizeof far->said, "%s", sealane_last_error());
	return NULL;
}

/* Both fail, and each end says something. Takes both trusts. */
static void do_not_meet(struct sealane_trust *near, struct sealane_trust *far,
                        const struct sealane_config *config, const char *near_says,
                        const char *far_says)
{
	struct answering other = {.end = {.role = SEALANE_ROLE_TARGET, .trust = far, .config = config}};
	struct sealane_streams *streams = NULL;
	struct sealane_stream *stream = NULL;
	pthread_t thread;
	int fds[2];
	sockets(fds);
	other.end.fd = fds[1];
	CHECK(pthread_create(&thread, NULL, answer_and_remember, &other) == 0);
	CHECK(sealane_streams_open(fds[0], SEALANE_ROLE_SOURCE, near, config, NULL, &streams,
	                           &stream) == -SEALANE_E_NOT_AUTHENTICATED);
	CHECK(strstr(sealane_last_error(), near_says));
	close(fds[0]);
	pthread_join(thread, NULL);
	CHECK(other.end.result == -SEALANE_E_NOT_AUTHENTICATED && strstr(other.said, far_says));
	CHECK(streams == NULL && stream == NULL && other.end.stream == NULL);
	sealane_trust_destroy(&near);
	sealane_trust_destroy(&far);
}

/* A session of the two. Takes both trusts. */
static void do_meet(struct sealane_trust *near, struct sealane_trust *far,
                    const struct sealane_config *config)
{
	struct end end = {.role = SEALANE_ROLE_TARGET, .trust = far, .config = config};
	struct sealane_streams *streams = NULL;
	struct sealane_stream *stream = NULL;
	pthread_t thread;
	int fds[2];
	sockets(fds);
	end.fd = fds[1];
	CHECK(pthread_create(&thread, NULL, answer_and_close, &end) == 0);
	CHECK(sealane_streams_open(fds[0], SEALANE_ROLE_SOURCE, near, config, NULL, &streams,
	                           &stream) == 0);
	pthread_join(thread, NULL);
	CHECK(end.result == 0);
	close(fds[0]);
	/* What they met by may go. */
	sealane_trust_destroy(&near);
	sealane_trust_destroy(&far);
	byte_crosses(stream, end.stream, 5);
	sealane_stream_destroy(&stream);
	sealane_streams_destroy(&streams);
	destroy_end(&end);
}

static void by_certificates(const char *place, const struct sealane_config *config)
{
	struct sealane_certificates *certificates = NULL;
	struct sealane_secret *secret = NULL;
	struct sealane_trust *trust = NULL;
	CHECK(sealane_secret_generate(&secret) == 0);
	do_meet(trust_of(place, "near.example", "far.example", NULL),
	        trust_of(place, "far.example", "near.example", NULL), config);
	do_meet(trust_of(place, "near.example", "far.example", secret),
	        trust_of(place, "far.example", "near.example", secret), config);
	CHECK(from_files(place, NULL, &certificates) == 0);
	CHECK(sealane_certificates_check(certificates, SEALANE_SIDE_CONNECTED) == 0);
	CHECK(sealane_certificates_check(certificates, SEALANE_SIDE_ACCEPTED) == 0);
	CHECK(sealane_certificates_check(certificates, 3) == -EINVAL);
	CHECK(sealane_certificates_check(NULL, SEALANE_SIDE_ACCEPTED) == -EINVAL);
	CHECK(sealane_trust_new(NULL, certificates, &trust) == 0);
	sealane_certificates_destroy(&certificates);
	do_meet(trust, trust_of(place, "far.example", "near.example", NULL), config);

	/* Another host of the same CA, whichever end it is at. */
	do_not_meet(trust_of(place, "near.example", "far.example", NULL),
	            trust_of(place, "third.example", "near.example", NULL), config,
	            "certificate is for third.example", "refused");
	do_not_meet(trust_of(place, "third.example", "far.example", NULL),
	            trust_of(place, "far.example", "near.example", NULL), config, "refused",
	            "certificate is for third.example");
	/* Both on one side alone. */
	do_not_meet(trust_of(place, "near.example", "far.example", secret),
	            trust_of(place, "far.example", "near.example", NULL), config, "secret", "secret");

	/* One end alone. */
	char dials[4096];
	snprintf(dials, sizeof dials, "%s/pki/dials.example", place);
	CHECK(sealane_certificates_from_directory(dials, "far.example", &certificates) == 0);
	CHECK(sealane_certificates_check(certificates, SEALANE_SIDE_CONNECTED) == 0);
	CHECK(sealane_certificates_check(certificates, SEALANE_SIDE_ACCEPTED) == -SEALANE_E_CONFIG);
	CHECK(strstr(sealane_last_error(), "server-cert.pem"));
	sealane_certificates_destroy(&certificates);

	CHECK(from_files(place, "revokes-near.pem", &certificates) == -SEALANE_E_CONFIG);
	CHECK(strstr(sealane_last_error(), "revokes"));
	CHECK(from_files(place, "no-such-list.pem", &certificates) == -ENOENT);
	CHECK(sealane_certificates_from_directory("/no/such", "far.example", &certificates) == -ENOENT);
	CHECK(sealane_certificates_from_directory(place, "no name", &certificates) ==
	      -SEALANE_E_CONFIG);
	CHECK(sealane_certificates_from_directory(place, NULL, &certificates) == -EINVAL);
	CHECK(sealane_certificates_from_directory(NULL, "far.example", &certificates) == -EINVAL);
	CHECK(sealane_certificates_from_files(NULL, NULL, NULL, NULL, "x", &certificates) == -EINVAL);
	CHECK(certificates == NULL);
	sealane_secret_destroy(&secret);
}

/* A library that was built without certificates says so. */
static void certificates_were_left_out(const char *place)
{
	struct sealane_certificates *certificates = NULL;
	CHECK(sealane_certificates_from_directory(place, "far.example", &certificates) ==
	      -SEALANE_E_CONFIG);
	CHECK(strstr(sealane_last_error(), "feature certificates"));
	CHECK(from_files(place, NULL, &certificates) == -SEALANE_E_CONFIG);
	CHECK(strstr(sealane_last_error(), "feature certificates") && certificates == NULL);
	sealane_certificates_destroy(&certificates);
}

static void trust_of_nothing(void)
{
	struct sealane_trust *trust = NULL;
	CHECK(sealane_trust_new(NULL, NULL, &trust) == -EINVAL && trust == NULL);
	CHECK(strstr(sealane_last_error(), "certificates or both"));
	CHECK(sealane_trust_new(NULL, NULL, NULL) == -EINVAL);
	sealane_trust_destroy(&trust);
	sealane_trust_destroy(NULL);
	sealane_certificates_destroy(NULL);
	sealane_dialler_destroy(NULL);
}

static void tests(int engine, const char *place)
{
	struct sealane_config *config = new_config(engine);
	char pki[4096];
	snprintf(pki, sizeof pki, "%s/pki", place);
	CHECK(sealane_config_set_lanes(config, 2) == 0);
	trust_of_nothing();
	by_tcp_from_chosen_ports(config);
	by_a_unix_socket(place, config);
	by_sockets_that_are_there(config);
	where_both_dial(config);
	by_name_at_one_listener(engine);
	two_of_one_name(config);
	streams_of_another_kind(config);
	if (access(pki, F_OK) == 0)
		by_certificates(place, config);
	else
		certificates_were_left_out(place);
	sealane_config_destroy(&config);
}

int main(int count, char **arguments)
{
	return run_tests(count, arguments, tests);
}
