/* Mistakes that a sanitizer or Valgrind must tell: shows that they are on. */
#include <stdlib.h>
#include <string.h>

int main(int count, char **arguments)
{
	volatile int by = 40;
	if (count != 2)
		return 2;
	if (strcmp(arguments[1], "heap") == 0) {
		volatile char *bytes = malloc(8);
		bytes[8] = 1;
		free((void *)bytes);
	} else if (strcmp(arguments[1], "leak") == 0) {
		volatile char *bytes = malloc(8);
		bytes[0] = 1;
		bytes = NULL;
	} else if (strcmp(arguments[1], "shift") == 0) {
		return 1 << by;
	}
	return 0;
}
