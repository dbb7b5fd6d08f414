/* What the C files of the kernels share.
 *
 *   plain.c, avx2.c, avx_vnni.c, avx512_vnni.c, amx.c, neon.c, neon_dotprod.c, neon_i8mm.c
 *              the kernels for each instruction set (isa.h; vectors.inc, strips.inc, winograd.inc, swin.inc, sweeps.inc, elementwise.inc)
 *   isas.c     which of them run on an instruction set
 *   processor.c  which of those this processor has
 *   phases.c   what a picture's phases are, their units of work, and the order of those
 *   memory.c   where maps, plan and scratch lie in a picture's memory, and what they hold before the first phase
 *   threads.c  units of work on several threads
 *   program.c  networks that are programs: their memory, sweeps and threads
 *   check.c    whether arguments are in range; check_program.c those of programs
 *   entry.c    the entry points
 *   abi.c      the layout of the structures of network.h
 */
#ifndef QUANTSR_KERNELS_H
#define QUANTSR_KERNELS_H

#include "network.h"

#include <stdatomic.h>

/* AVX-VNNI and AMX need a compiler that knows them, AMX also Linux's permission to use its tiles. */
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 13 : __GNUC__ >= 11)
#define HAS_AVX_VNNI_KERNELS
#if defined(__linux__)
#define HAS_AMX_KERNELS
#endif
#endif

/* ARM64's NEON. Clang before version 16 has the intrinsics of its extensions only where all code may use them. */
#if defined(__aarch64__) && !defined(__AARCH64EB__)
#define HAS_NEON_KERNELS
#if defined(__clang__) ? __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD) : __GNUC__ >= 10
#define HAS_NEON_DOTPROD_KERNELS
#endif
#if defined(HAS_NEON_DOTPROD_KERNELS) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_MATMUL_INT8))
#define HAS_NEON_I8MM_KERNELS
#endif
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Of a Winograd convolution F(2x2, 3x3): a tile of 4x4 inputs gives 2x2 outputs by products at 16 positions. Of F(4x4, 3x3): 6x6
   inputs give 4x4 outputs by products at 49. A chunk of tiles is computed at once. */
enum { POSITIONS = 16, LARGE_POSITIONS = 49, CHUNK = 12, BORDER = 2 };

/* Pixels behind a map of a program that products of several pixels at once may read. */
enum { SLACK = 2 * CHUNK };

/* Pixels that the first convolution takes at once. */
enum { HEAD = 4 };

enum { MAX_OUTPUTS = 192, MAX_THREADS = 64 };

/* How many channels of values attention mixes at once, and what it may therefore read beyond the last. */
enum { CHANNELS_AT_ONCE = 5 };

/* A buffer in memory: pixel (y, x) starts at start + ((y + BORDER) * row + x + BORDER) * channels * size. */
typedef struct {
    char *start;
    size_t row; /* in pixels */
    int32_t height, width, channels, size;
} Place;

/* A program at work on a picture. */
typedef struct {
    const Network *net;
    const PictureBuffers *picture;
    const Place *places; /* of its buffers */
} Frame;

/* Feature maps: pixel (y, x) starts at ((y + border) * row + x + border) * C. */
typedef struct {
    double *pixels;                     /* the head's input, 3 colours; border 1, HEAD on the right */
    float *start;                       /* the head's output, then the tail's input */
    float *stream;                      /* between blocks */
    int16_t *body_words;                /* conv_after_body's input, of WORDS */
    int16_t *tail_words;                /* the tail's */
    uint8_t *body_planes, *tail_planes; /* the same of SPLIT, [3][plane bytes] */
    size_t plane;
    uint8_t *codes1;  /* conv1's input; border 1 */
    uint8_t *codes2;  /* conv2's */
    float *tokens;    /* of a QuantSR-T instead, [y][channel][x]: what goes from RSTB to RSTB ... */
    float *inner;     /* ... and from layer to layer in one */
    size_t token_row; /* floats in a row of one channel of those */
    size_t row;       /* pixels in a row of the maps with border 2 */
    size_t code_row;  /* the same with border 1 */
    Frame frame;      /* of a QuantSR-T's sweeps */
} Maps;

/* One window of tokens in its layer, [channel][token]. */
typedef struct {
    float *x, *q, *k, *v, *mixed;
    int32_t *codes, *hidden; /* four channels each */
    float *scores;           /* [key][2 vectors of queries] */
    uint8_t *const *copies;  /* of the layer's inputs' codes in PictureBuffers.codes, or NULL */
    size_t number;           /* of the window in its picture */
} Window;

/* One thread's own memory. */
typedef struct {
    char *inputs;         /* transformed inputs of a chunk, [blocks][CHUNK + 1][16][C] and 64 bytes a tile */
    int32_t *sums;        /* or floats: [tile][16][P] and 16 */
    uint8_t *spare_codes; /* [HEAD * C] each: where results of no pixel go */
    int16_t *spare_words;
    float *spare_floats;
    float *shown; /* of a program: [RUN][channels] and 16 what DO_SHOW was given */
    Window window;
} Scratch;

/* What a QuantSR-T's phases are; with sweeps between, SPREAD gives them what the layers of a group gave, and JOIN adds their result. */
typedef struct {
    enum { FIRST, LAYER, SPREAD, CLOSING, JOIN, NORM, AFTER_BODY, SWEEP, TAIL } kind;
    const Rstb *group;
    const SwinLayer *layer;
    const Sweep *sweep;
} Step;

/* A row, strip or window of one phase. */
typedef struct {
    int32_t phase, number;
} Unit;

/* Units in an order in which each comes after those that it needs. */
typedef struct {
    Unit *order;
    int32_t *first;     /* of each phase: the place of its unit 0 in `done` */
    atomic_uchar *done; /* [units] */
    int32_t phases, units;
} Plan;

/* What a thread's memory for sweeps takes. */
typedef struct {
    size_t inputs; /* bytes of a tile */
    size_t sums;   /* of a tile or pixel */
    size_t shown;  /* floats of a pixel */
} SweepScratch;

/* Registers of element-wise operations, and the pixels that they hold. */
enum { REGISTERS = 6, RUN = LARGE_TILE * LARGE_TILE };

/* Rows of a map that one unit of a sweep's work has, where tiles do not say. */
enum { SWEEP_ROWS = 4 };

typedef void (*SweepWork)(const Frame *, const Sweep *, int unit, Scratch *);

/* The kernels of one instruction set for one kind of network. */
typedef struct {
    void (*work)(const Network *, const PictureBuffers *, const Maps *, int phase, int unit, Scratch *);
    void (*begin)(void), (*end)(void); /* what a thread calls before its first unit and after its last; or NULL */
} Kernels;

/* Of each instruction set: the work of a network of blocks, of Swin layers, and of a sweep. */
#define DECLARE_KERNELS(isa)                                                                                                          \
    void work_##isa(const Network *net, const PictureBuffers *picture, const Maps *maps, int phase, int unit, Scratch *scratch);      \
    void swin_work_##isa(const Network *net, const PictureBuffers *picture, const Maps *maps, int phase, int unit, Scratch *scratch); \
    void sweep_##isa(const Frame *frame, const Sweep *sweep, int unit, Scratch *scratch)
DECLARE_KERNELS(plain);
DECLARE_KERNELS(avx2);
DECLARE_KERNELS(avx_vnni);
DECLARE_KERNELS(avx512_vnni);
DECLARE_KERNELS(neon);
DECLARE_KERNELS(neon_dotprod);
DECLARE_KERNELS(neon_i8mm);
#undef DECLARE_KERNELS

/* amx.c: of blocks; what a thread calls before its first unit, and after its last */
void work_amx(const Network *net, const PictureBuffers *picture, const Maps *maps, int phase, int unit, Scratch *scratch);
void load_tile_config(void);
void release_tiles(void);

/* isas.c */
Kernels kernels_of(int isa, int swin);
SweepWork sweep_work_of(int isa);

/* phases.c */
Step step_of(const Network *net, int phase);
int layers_before(const Swin *swin, const Rstb *group, const SwinLayer *layer);
int rows_of(const Network *net, int phase);
int phases_of(const Network *net);
int units_of(const Network *net, const PictureBuffers *picture, int phase);
void needs_of(const Network *net, const PictureBuffers *picture, Unit unit, int *from, int *to);
void make_plan(const Network *net, const PictureBuffers *picture, Plan *plan);

/* memory.c */
void *take(char **free, size_t bytes);
size_t lay_out(const Network *net, const PictureBuffers *picture, char *memory, Maps *maps, Plan *plan, Scratch *scratch);
void fill_maps(const Network *net, const PictureBuffers *picture, const Maps *maps);

/* threads.c */
void run_threads(const Network *net, const PictureBuffers *picture, const Maps *maps, const Plan *plan, const Scratch *scratch, Kernels kernels);

/* program.c */
int side_of_map(int side, int factor);
size_t row_of_map(int width, int factor);
int rows_of_sweep(const Sweep *sweep);
int units_of_sweep(const Sweep *sweep, const PictureBuffers *picture);
SweepScratch scratch_of_sweeps(const Program *program);
Place *place_buffers(const Network *net, const PictureBuffers *picture, const Maps *maps, char **end, int fill);
void finish_unit(const Frame *frame, const Sweep *sweep, int unit);
size_t program_memory(const Network *net, const PictureBuffers *picture);
void run_program(const Network *net, const PictureBuffers *picture, int isa, void *memory);

/* check_program.c */
int is_program(const Network *net, const PictureBuffers *picture);

/* check.c */
int is_in_range(const Network *net, const PictureBuffers *picture);
int is_for_isa(const Network *net, int isa);

#endif
