/* Ranks of the elements of rows. */
#include <stdint.h>
#include <string.h>

/* The chance of each element to stay: rank in its row by size (equal ones in order), times `step`, plus `low`. A radix
   sort on the bits, whose order is that of numbers that are not negative, each with its place in the row beside it;
   `work`: 2 times `columns`. */
static void chances(const float *sizes, int64_t rows, int64_t columns, float low, float step, uint64_t *work,
                    float *out) {
    for (int64_t r = 0; r < rows; r++, sizes += columns, out += columns) {
        uint32_t counts[3][2048] = {{0}};
        uint64_t *items = work, *sorted = work + columns;
        for (int64_t i = 0; i < columns; i++) {
            uint32_t key;
            memcpy(&key, sizes + i, 4);
            items[i] = (uint64_t)key << 32 | (uint64_t)i;
            counts[0][key & 2047]++, counts[1][key >> 11 & 2047]++, counts[2][key >> 22]++;
        }
        for (int digit = 0; digit < 3; digit++) {
            uint32_t *count = counts[digit], before = 0;
            int shift = 32 + 11 * digit;
            if (count[items[0] >> shift & 2047] == columns) continue;
            for (int b = 0; b < 2048; b++) {
                uint32_t own = count[b];
                count[b] = before, before += own;
            }
            for (int64_t i = 0; i < columns; i++) sorted[count[items[i] >> shift & 2047]++] = items[i];
            uint64_t *swap = items;
            items = sorted, sorted = swap;
        }
        for (int64_t i = 0; i < columns; i++) out[(uint32_t)items[i]] = (float)i * step + low;
    }
}
