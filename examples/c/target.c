/*
 * A VMM that receives a guest: target ADDRESS TRUST MIB [KEY=VALUE ..]
 *
 * See source.c for the other end. ADDRESS is one of this host's and a port, 0 for any: the first
 * line says which. Exits 0 once the guest is here, 1 after an error, 2 for wrong arguments.
 */
#define _GNU_SOURCE /* memfd_create */
#include "example.h"

/* The source gets the reason too. */
static int refuse(struct sealane_target *target, const char *reason)
{
	fprintf(stderr, "refused: %s\n", reason);
	if (sealane_target_refuse(target, reason) < 0)
		complain("refusal");
	return 1;
}

/* A VMM compares the offer with the machine that it is to build. */
static int accept_offer(struct sealane_target *target,
                        const struct guest *guest)
{
	struct sealane_region *ram = NULL;
	const struct sealane_region *regions[1];
	char name[256];
	uint64_t bytes;
	int status = 0;

	if (sealane_target_offers(target) != 1)
		return refuse(target, "one region is wanted");
	if (sealane_target_offer(target, 0, name, sizeof name, &bytes) < 0)
		return complain("offer");
	if (strcmp(name, "ram") != 0 || bytes != guest->bytes)
		return refuse(target, "no region ram, as large as here");
	if (sealane_region_from_fd("ram", guest->fd, 0, guest->bytes,
	                           &ram) < 0)
		return complain("region");
	regions[0] = ram;
	if (sealane_target_accept(target, regions, 1) < 0)
		status = complain("accept");
	sealane_region_destroy(&ram);
	return status;
}

static int receive(struct sealane_target *target, struct guest *guest)
{
	struct sealane_statistics statistics = {.size = sizeof statistics};
	ssize_t bytes = sealane_target_receive(target); /* all rounds */

	if (bytes < 0)
		return complain("receive");
	if ((size_t)bytes != sizeof guest->steps)
		return refuse(target, "a device state of another size");
	if (sealane_target_state(target, &guest->steps,
	                         sizeof guest->steps) < 0)
		return complain("device state");
	/* What can fail here comes before this: the source has it still. */
	if (sealane_target_ready(target) < 0)
		return complain("the guest stays at the source");
	/* The source has let go: from here on the guest is this end's. */
	if (sealane_target_done(target, &statistics) < 0)
		complain("the source was not told");
	else
		printf("taken: %" PRIu64 " bytes on the wire\n",
		       statistics.wire_bytes);
	return 0;
}

/* Waits at an address for the source. Strangers do not end the wait. */
static int start(char **arguments, const struct sealane_config *config,
                 struct sealane_target **target)
{
	struct sealane_trust *trust = NULL;
	struct sealane_listener *listener = NULL;
	struct sealane_lanes *lanes = NULL;
	int port, status = 0;

	if (trust_new(arguments[2], &trust) != 0)
		return 1;
	if (sealane_listener_bind(arguments[1], &listener) < 0 ||
	    (port = sealane_listener_port(listener)) < 0) {
		status = complain("target");
		goto out;
	}
	printf("listening at port %d\n", port);
	fflush(stdout);
	if (sealane_lanes_accept(listener, SEALANE_ROLE_TARGET, trust,
	                         config, NULL, &lanes) < 0 ||
	    sealane_target_start(lanes, config, NULL, target) < 0)
		status = complain("target");
out:
	sealane_lanes_destroy(&lanes);
	sealane_listener_destroy(&listener);
	sealane_trust_destroy(&trust);
	return status;
}

int main(int count, char **arguments)
{
	struct sealane_config *config = NULL;
	struct sealane_target *target = NULL;
	struct guest guest = {.fd = -1};
	int status;

	if (count < 4) {
		fputs("usage: target ADDRESS TRUST MIB [KEY=VALUE ..]\n", stderr);
		return 2;
	}
	status = sealane_config_new(&config) < 0 ? complain("settings")
	                                         : configure(config, arguments + 4);
	if (status == 0)
		status = guest_new(&guest, arguments[3]);
	if (status == 0)
		status = start(arguments, config, &target);
	if (status == 0)
		status = accept_offer(target, &guest);
	if (status == 0)
		status = receive(target, &guest);
	if (status == 0)
		guest_print(&guest);
	sealane_target_destroy(&target);
	sealane_config_destroy(&config);
	guest_destroy(&guest);
	return status;
}
