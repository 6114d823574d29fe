/*
 * A VMM that sends its guest: source ADDRESS TRUST MIB [KEY=VALUE ..]
 *
 * Start target first, on this or another host. Both need the same secret, which is good for one
 * migration: (umask 077; openssl rand -hex 32 > key); its file is TRUST. Or both have certificates
 * of one CA: TRUST is DIRECTORY@PEER then. ADDRESS and settings are those of sealane(3), for
 * example host:7800 and lanes=4. Exits 0 once the target has the guest, 1 after an error, 2 for wrong arguments.
 */
#define _GNU_SOURCE /* memfd_create */
#include "example.h"

/* With so few pages left the guest is paused: they cross in a moment. */
enum { PAGES_LEFT = 64, ROUNDS_MAX = 30 };

/* Until it has let go an error leaves the guest with this end. */
static int hand_over(struct sealane_source *source)
{
	struct sealane_statistics statistics = {.size = sizeof statistics};
	int result = sealane_source_hand_over(source, &statistics);

	if (result == -SEALANE_E_IN_DOUBT || result == -SEALANE_E_PANIC)
		return complain("the guest must not run here, look there");
	if (result < 0)
		return complain("not handed over, the guest stays here");
	printf("handed over: %" PRIu64 " bytes on the wire\n",
	       statistics.wire_bytes);
	return 0;
}

static int migrate(struct sealane_source *source, struct guest *guest)
{
	const uint64_t *bitmaps[] = {guest->dirty}; /* one a region */
	struct sealane_round round = {.size = sizeof round};

	/* The guest runs: all pages, then what it wrote to meanwhile. */
	if (sealane_source_send_all(source, &round) < 0)
		return complain("first round");
	while (round.pages > PAGES_LEFT && round.round < ROUNDS_MAX) {
		printf("round %" PRIu32 ": %" PRIu64 " pages, %" PRIu64 " us\n",
		       round.round, round.pages, round.elapsed_us);
		guest_runs(guest, round.pages / 8);
		if (sealane_source_send_bitmaps(source, bitmaps, 1, &round) < 0)
			return complain("round");
	}
	/* The last that it wrote. From here on it stands still. */
	guest_runs(guest, PAGES_LEFT);
	if (sealane_source_send_bitmaps(source, bitmaps, 1, NULL) < 0)
		return complain("last round");
	if (sealane_source_commit(source, &guest->steps,
	                          sizeof guest->steps) < 0)
		return complain("commit");
	return hand_over(source);
}

/* What it was made of may go then: a source keeps what it needs. */
static int start(char **arguments, const struct sealane_config *config,
                 const struct guest *guest,
                 struct sealane_source **source)
{
	struct sealane_trust *trust = NULL;
	struct sealane_dialler *dialler = NULL;
	struct sealane_lanes *lanes = NULL;
	struct sealane_region *ram = NULL;
	const struct sealane_region *regions[1];
	int status = 0;

	if (trust_new(arguments[2], &trust) != 0)
		return 1;
	if (sealane_region_from_fd("ram", guest->fd, 0, guest->bytes,
	                           &ram) < 0 ||
	    sealane_dialler_new(arguments[1], &dialler) < 0 ||
	    sealane_lanes_dial(dialler, SEALANE_ROLE_SOURCE, trust, config,
	                       NULL, &lanes) < 0) {
		status = complain("source");
		goto out;
	}
	regions[0] = ram;
	if (sealane_source_start(lanes, regions, 1, config, NULL,
	                         source) < 0)
		status = complain("offer");
out:
	sealane_lanes_destroy(&lanes);
	sealane_region_destroy(&ram);
	sealane_dialler_destroy(&dialler);
	sealane_trust_destroy(&trust);
	return status;
}

int main(int count, char **arguments)
{
	struct sealane_config *config = NULL;
	struct sealane_source *source = NULL;
	struct guest guest = {.fd = -1};
	int status;

	if (count < 4) {
		fputs("usage: source ADDRESS TRUST MIB [KEY=VALUE ..]\n", stderr);
		return 2;
	}
	status = sealane_config_new(&config) < 0 ? complain("settings")
	                                         : configure(config, arguments + 4);
	if (status == 0)
		status = guest_new(&guest, arguments[3]);
	if (status == 0)
		guest_runs(&guest, guest.pages / 2); /* half of it is zero still */
	if (status == 0)
		status = start(arguments, config, &guest, &source);
	if (status == 0)
		status = migrate(source, &guest);
	if (status == 0)
		guest_print(&guest);
	sealane_source_destroy(&source); /* before the handover this cancels */
	sealane_config_destroy(&config);
	guest_destroy(&guest);
	return status;
}
