/* What the C tests share. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include <sealane.h>

#define CHECK(what)                                                                               \
	do {                                                                                          \
		if (!(what)) {                                                                            \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, sealane_last_error());  \
			exit(1);                                                                              \
		}                                                                                         \
	} while (0)

#endif
