/*
 * What the examples share and a VMM has its own of: complaints, settings, and a guest, which is a
 * memfd that somebody writes to. Nothing here is needed to use Sealane.
 */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <sealane.h>

enum { WORDS_A_PAGE = 4096 / sizeof(uint64_t) };

struct guest {
	int fd;
	uint64_t *memory;
	size_t bytes;
	size_t pages;
	uint64_t *dirty; /* the pages that guest_runs() wrote to, a bit a page */
	uint64_t steps;  /* its device state */
};

/* Says what failed, and why. Returns the exit code. */
static inline int complain(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, sealane_last_error());
	return 1;
}

/* Takes settings from arguments KEY=VALUE. */
static inline int configure(struct sealane_config *config, char **settings)
{
	for (; *settings; settings++) {
		char *value = strchr(*settings, '=');

		if (!value) {
			fprintf(stderr, "%s: KEY=VALUE is wanted\n", *settings);
			return 2;
		}
		*value++ = '\0';
		if (sealane_config_set(config, *settings, value) < 0) {
			complain("settings");
			return 2;
		}
	}
	return 0;
}

/*
 * Trust, from an argument: a file with a secret, or DIRECTORY@PEER, which is a directory with
 * certificates (docs/certificates.md) and the name that the other end's certificate must have.
 */
static inline int trust_new(char *argument, struct sealane_trust **trust)
{
	struct sealane_secret *secret = NULL;
	struct sealane_certificates *certificates = NULL;
	char *peer = strrchr(argument, '@');
	int status = 0;

	if (peer)
		*peer++ = '\0';
	if ((peer ? sealane_certificates_from_directory(argument, peer,
	                                                &certificates)
	          : sealane_secret_read(argument, &secret)) < 0 ||
	    sealane_trust_new(secret, certificates, trust) < 0)
		status = complain("trust");
	sealane_certificates_destroy(&certificates);
	sealane_secret_destroy(&secret);
	return status;
}

/* A guest with so much memory, zero all over. */
static inline int guest_new(struct guest *guest, const char *mib)
{
	unsigned long size = strtoul(mib, NULL, 10);
	void *memory;

	if (size < 1 || size > 1024 * 1024) {
		fprintf(stderr, "%s MiB: 1 to 1048576 are wanted\n", mib);
		return 2;
	}
	guest->bytes = size << 20;
	guest->pages = guest->bytes / 4096;
	guest->dirty = calloc(guest->pages / 64, sizeof *guest->dirty);
	guest->fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (!guest->dirty || guest->fd < 0 || ftruncate(guest->fd, (off_t)guest->bytes) < 0) {
		perror("guest memory");
		return 1;
	}
	memory = mmap(NULL, guest->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, guest->fd, 0);
	if (memory == MAP_FAILED) {
		perror("guest memory");
		return 1;
	}
	guest->memory = memory;
	return 0;
}

static inline void guest_destroy(struct guest *guest)
{
	if (guest->memory)
		munmap(guest->memory, guest->bytes);
	if (guest->fd >= 0)
		close(guest->fd);
	free(guest->dirty);
}

/*
 * In place of vCPUs and of KVM_GET_DIRTY_LOG: writes to so many pages, here and there, and leaves
 * in the bitmap which ones.
 */
static inline void guest_runs(struct guest *guest, uint64_t pages)
{
	memset(guest->dirty, 0, guest->pages / 8);
	for (; pages > 0; pages--, guest->steps++) {
		size_t page = guest->steps * 7919 % guest->pages;

		guest->memory[page * WORDS_A_PAGE + guest->steps % WORDS_A_PAGE] = guest->steps + 1;
		guest->dirty[page / 64] |= UINT64_C(1) << page % 64;
	}
}

/* One line that is the same at both ends where the guest is (FNV-1a over its memory's words). */
static inline void guest_print(const struct guest *guest)
{
	uint64_t sum = UINT64_C(0xcbf29ce484222325);

	for (size_t n = 0; n < guest->bytes / sizeof *guest->memory; n++)
		sum = (sum ^ guest->memory[n]) * UINT64_C(0x100000001b3);
	printf("guest: %" PRIu64 " steps, sum %016" PRIx64 "\n", guest->steps, sum);
}

#endif
