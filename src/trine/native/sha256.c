/* SHA-256 (FIPS 180-4) of several streams at once. The processor's SHA instructions have twice the latency of their
   throughput, so rounds of independent streams fill each other's gaps. */
#include <stdint.h>

#ifdef __SHA__
#include <errno.h>
#include <immintrin.h>
#include <unistd.h>

static const uint32_t K[64] __attribute__((aligned(64))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#define STREAMS 4

/* state[s] = (a, b, ..., h) of stream s after `blocks` more blocks of 64 bytes. `count` is known when compiled. */
static inline __attribute__((always_inline)) void run(int count, uint32_t *const *state, const uint8_t *const *data,
                                                      int64_t blocks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef[STREAMS], cdgh[STREAMS], m[STREAMS][4];
    for (int s = 0; s < count; s++) {
        __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state[s]), 0xB1);
        __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state[s] + 4)), 0x1B);
        abef[s] = _mm_alignr_epi8(badc, hgfe, 8);
        cdgh[s] = _mm_blend_epi16(hgfe, badc, 0xF0);
    }
    for (int64_t b = 0; b < blocks; b++) {
        __m128i before_abef[STREAMS], before_cdgh[STREAMS];
        for (int s = 0; s < count; s++) {
            before_abef[s] = abef[s], before_cdgh[s] = cdgh[s];
            for (int i = 0; i < 4; i++) {
                __m128i words = _mm_loadu_si128((const __m128i *)(data[s] + 64 * b + 16 * i));
                m[s][i] = _mm_shuffle_epi8(words, big_endian);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++) /* four rounds each */
            for (int s = 0; s < count; s++) {
                __m128i words = m[s][r & 3], last = m[s][(r + 3) & 3];
                __m128i sum = _mm_add_epi32(words, _mm_load_si128((const __m128i *)(K + 4 * r)));
                cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], sum);
                abef[s] = _mm_sha256rnds2_epu32(abef[s], cdgh[s], _mm_shuffle_epi32(sum, 0x0E));
                if (r < 12) {
                    __m128i next = _mm_sha256msg1_epu32(words, m[s][(r + 1) & 3]);
                    next = _mm_add_epi32(next, _mm_alignr_epi8(last, m[s][(r + 2) & 3], 4));
                    m[s][r & 3] = _mm_sha256msg2_epu32(next, last);
                }
            }
        for (int s = 0; s < count; s++) {
            abef[s] = _mm_add_epi32(abef[s], before_abef[s]);
            cdgh[s] = _mm_add_epi32(cdgh[s], before_cdgh[s]);
        }
    }
    for (int s = 0; s < count; s++) {
        __m128i feba = _mm_shuffle_epi32(abef[s], 0x1B), dchg = _mm_shuffle_epi32(cdgh[s], 0xB1);
        _mm_storeu_si128((__m128i *)state[s], _mm_blend_epi16(feba, dchg, 0xF0));
        _mm_storeu_si128((__m128i *)(state[s] + 4), _mm_alignr_epi8(dchg, feba, 8));
    }
}

/* 1 to 4 streams. */
void sha256(int count, uint32_t *const *state, const uint8_t *const *data, int64_t blocks) {
    switch (count) {
    case 1: run(1, state, data, blocks); break;
    case 2: run(2, state, data, blocks); break;
    case 3: run(3, state, data, blocks); break;
    default: run(4, state, data, blocks);
    }
}

/* `pieces` pieces of each file into the buffers and the states; `offsets` of the files move on. Returns how many pieces
   every file gave: fewer where one ended or could not be read. A piece is a multiple of 64 bytes. */
int64_t sha256_files(int count, const int64_t *files, int64_t *offsets, uint8_t *const *buffers, uint32_t *const *state,
                     int64_t piece, int64_t pieces) {
    for (int64_t i = 0; i < pieces; i++) {
        for (int s = 0; s < count; s++)
            for (int64_t have = 0; have < piece;) {
                ssize_t got = pread((int)files[s], buffers[s] + have, (size_t)(piece - have), offsets[s] + have);
                if (got < 0 && errno == EINTR) continue;
                if (got <= 0) return i;
                have += got;
            }
        sha256(count, state, (const uint8_t *const *)buffers, piece / 64);
        for (int s = 0; s < count; s++) offsets[s] += piece;
    }
    return pieces;
}

int available(void) { return 1; }
#else
int available(void) { return 0; }
#endif
