/* The product of packed tiles by Intel AMX; a part of tiles.h. */
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

/* Asks the system for tiles; the answer holds for the whole process. */
int available(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 2 : 0; }

/* Tiles set up for `product`, and what another library had set up before, which `tiles_end` brings back. */
static inline TileShapes tiles_begin(void) {
    TileShapes before, ours = {.palette = 1};
    _tile_storeconfig(&before);
    for (int i = 0; i < 8; i++) ours.rows[i] = 16, ours.row_bytes[i] = 64;
    _tile_loadconfig(&ours);
    return before;
}
static inline void tiles_end(const TileShapes *before) { before->palette ? _tile_loadconfig(before) : _tile_release(); }

/* to = (add ? to : 0) + (left 0; left 1) x (right 0, right 1) over `depth` tiles; those of the left ones lie `apart`. */
static inline void multiply(Result to, const bf16 *left0, const bf16 *left1, int64_t apart, const bf16 *right0,
                            const bf16 *right1, int64_t depth, int add) {
    int64_t stride = to.stride * sizeof(float);
    if (add) {
        _tile_loadd(0, to.at[0], stride); _tile_loadd(1, to.at[1], stride);
        _tile_loadd(2, to.at[2], stride); _tile_loadd(3, to.at[3], stride);
    } else {
        _tile_zero(0); _tile_zero(1);
        _tile_zero(2); _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k++) {
        _tile_loadd(4, left0 + k * apart, 64);
        _tile_loadd(6, right0 + k * TILE, 64);
        _tile_loadd(7, right1 + k * TILE, 64);
        _tile_loadd(5, left1 + k * apart, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to.at[0], stride); _tile_stored(1, to.at[1], stride);
    _tile_stored(2, to.at[2], stride); _tile_stored(3, to.at[3], stride);
}
