/*
 * The yardstick for making page-table entries: a plain loop that fills as many of them as asked for,
 * one at a time, as a kernel would. Usage: fill ENTRIES. Prints the sum, so that no compiler drops the work.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define PAGE_KERNEL 0x8000000000000163ULL

int main(int argc, char **argv)
{
	uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 0, sum = 0;
	uint64_t *entries = malloc(count * sizeof(*entries) + 1);

	if (!entries) {
		fprintf(stderr, "fill: no memory for %llu entries\n", (unsigned long long)count);
		return 1;
	}
	for (uint64_t i = 0; i < count; i++)
		entries[i] = i << 12 | PAGE_KERNEL;
	for (uint64_t i = 0; i < count; i += 512)
		sum += entries[i];
	printf("%llu\n", (unsigned long long)sum);
	free(entries);
	return 0;
}
