/* What Python hands to the kernels: structures.py has the same structures, and abi.c lists their fields. */
#ifndef QUANTSR_NETWORK_H
#define QUANTSR_NETWORK_H

#include <stddef.h>
#include <stdint.h>

/* The number of this interface, which library.py has as well. Add one whenever a structure, the meaning of a field or an entry point changes. */
#define QUANTSR_ABI 5

/* Sides of a Winograd convolution's tile of outputs: F(2x2, 3x3) and F(4x4, 3x3). */
enum { TILE = 2, LARGE_TILE = 4 };

/* What the inputs and weights of a convolution are: unsigned bytes and signed ones, 16-bit integers, or float32, all in Winograd's form. Or, for
   AMX (amx.c), in their plain form: codes of a byte, or 14-bit integers in three bytes. */
enum { BYTES, WORDS, FLOATS, CODES, SPLIT };

/* A 3x3 convolution (blocks = 1), or a 5x5 one as four of 3x3 two pixels apart (blocks = 2). */
typedef struct {
    /* For each position, for each of its parts (rows of blocks first; the second block has none at position 0): transformed weights
       [C / g][P][g], g being how many inputs have 4 bytes. Those of codes are 4 times the transform (16 times with large tiles), which the
       scale takes off. Of CODES and SPLIT: for each plane (SPLIT has three), for each 16 outputs, for each row of the kernel [K / 4][16][4], K
       being (column, input) padded with zeros to a multiple of 64. */
    const void *weight;
    const int32_t *start; /* of BYTES: [positions][P], what takes the offsets of the inputs off again; with `in_groups` [positions][2]: the number of
                             steps of 4 inputs that are added in 16 bits, and a factor of their sums. What each group's sums start from, [P][2] of
                             16 bits, then stands before its weights */
    const float *scale;   /* [P] the value of one unit of the sum */
    const float *bias;    /* [P] */
    int32_t kind;
    int32_t blocks;
    int32_t outputs;      /* P, a multiple of 16 */
    int32_t tile;         /* of the convolutions in blocks: TILE or LARGE_TILE; of CODES the 1..4 rows that are computed at once */
    int32_t offset_sums;  /* of BYTES: added to the transformed inputs at position (1, 1), all of whose terms are added ... */
    int32_t offset_mixed; /* ... and at the others, so that they are unsigned */
    int32_t is_signed;    /* of CODES and SPLIT: whether inputs are signed bytes */
    int32_t in_groups;    /* of BYTES: whether they are laid out for sums of 16 bits (sums16.py), as AVX2 has them */
} Conv;

/* Codes of floats: clip(rint((x + tau) * factor[0] * factor[1]), low, high). */
typedef struct {
    const float *tau; /* [C] */
    float factor[2];
    float low, high;
} Quantizer;

/* s * x + conv2(conv1(x)); conv1 gives codes between low[c], which has the ReLU in it, and high. */
typedef struct {
    Quantizer input;
    Conv conv1, conv2;
    const float *low; /* [C] */
    float high;
    float shortcut;
    int32_t gaps;
    const float *gap; /* [gaps] shortcuts of the skipped blocks behind this one */
} Block;

/* The tail's kernels at the picture's border, [3][3] (first, inner, last row; then column): [kh][kw][C][P]. NULL: there are none. */
typedef struct {
    const float *weight[9];
    const float *bias[9]; /* [P] */
} Ring;

/* clip(rint(x * scale[c] + shift[c]), low, high), or x itself where there is no scale. As bytes, low is taken off. */
typedef struct {
    const float *scale, *shift;
    float low, high;
} Requantizer;

/* LayerNorm over channels; with low < high it gives codes, weight and bias being in their units. */
typedef struct {
    const float *weight, *bias;
    float low, high;
} Norm;

/* scale[o] * sum(bytes, weight[o]) + bias[o] */
typedef struct {
    const int8_t *weight; /* [O / 4][I / 4][4 outputs][4 inputs] */
    const int32_t *start; /* [O] takes the offset of the bytes off again */
    const float *scale, *bias;
    int32_t inputs, outputs; /* multiples of 4 */
    int32_t rounds;          /* the result is clip(rint(.), low, high) */
    float low, high;
    int32_t together; /* for AVX2: steps of 4 inputs whose products are added in 16 bits; else 0 */
} Linear;

/* m = x + proj(attention(norm1(x))); out = middle_scale * m + input_scale * x + fc2(gelu(fc1(norm2(m)))) */
typedef struct {
    Norm norm1, norm2;
    Linear q, k, v, proj, fc1, fc2;
    const float *bias; /* [heads][N keys][N queries] */
    float score_scale;
    Requantizer probabilities; /* [N keys], each where attention is quantized */
    Requantizer mix;           /* proj's input */
    Requantizer gelu;          /* fc2's */
    int32_t shift;             /* of the windows, in pixels */
    float middle_scale, input_scale;
} SwinLayer;

/* stream_scale * x + closing(codes(layers(start_scale * x))), or, with sweeps, those of the network's program in place of codes and closing. */
typedef struct {
    float start_scale, stream_scale;
    int32_t layers;
    const SwinLayer *layer;
    Requantizer codes;
    Conv closing;        /* of the network's after_body's kind */
    const float *factor; /* [C] as after_body_factor */
    int32_t sweeps;      /* of the program, behind those of the groups before; they read LAYERS_MAP. 0: there is a closing convolution instead */
    int32_t result;      /* the buffer (FLOATS) that they give */
} Rstb;

/* The body of a QuantSR-T. */
typedef struct {
    int32_t dim; /* channels, a multiple of 4 */
    int32_t heads;
    int32_t hidden; /* a multiple of 4 */
    int32_t window; /* its area is a multiple of 16 */
    int32_t groups;
    const Rstb *group;
    Norm first, last;
    const float *mask; /* [last column, last row, both][N keys][N queries]: of shifted windows */
} Swin;

/* Slots of buffers that are maps of a network's Swin layers, FLOATS of the picture's size and the network's channels: what the first convolution
   gives (and the sum behind the body, where after_body is a convolution), and what the layers of a group, or the last LayerNorm, give to sweeps. */
enum { START_MAP = -1, LAYERS_MAP = -2 };

/* A map of a program: float32, or codes as bytes or 16-bit integers, [y][x][channel] with a border. */
typedef struct {
    int32_t factor;   /* of its height and width over the picture's; 0: it is a single pixel */
    int32_t channels; /* a multiple of 16 */
    int32_t kind;     /* BYTES, WORDS or FLOATS */
    int32_t border;   /* the byte around a map of BYTES; zeros are around others */
    int32_t slot;     /* maps of the same slot share memory: no two of them are needed at once; or START_MAP or LAYERS_MAP */
} Buffer;

/* What an element-wise operation computes of registers, which hold vectors of channels of several pixels. `b` is the register `right`, or,
   where that is -1, a buffer. Those from DO_STORE on give no register. */
enum {
    DO_LOAD,     /* b */
    DO_ADD,      /* left + b */
    DO_SUBTRACT, /* left - b */
    DO_MULTIPLY, /* left * b */
    DO_SCALE,    /* left * values[0][c] */
    DO_OFFSET,   /* left + values[0][c] */
    DO_SLOPE,    /* left where left >= 0, else left * values[0][c] */
    DO_SIGMOID,
    DO_SILU,
    DO_TANH,
    DO_GELU,
    DO_STORE, /* left into a buffer of FLOATS */
    DO_CODES, /* clip(rint(u), low[c], high) - offset into a buffer, u being what `mode` says */
    DO_SHOW,  /* left as pixel values of the result, channels in the order (row phase, column phase, colour) */
};

/* u of DO_CODES: left; (left + values[0][c]) * values[1][c] * values[2][c]; (left + values[0][c]) / values[1][c];
   left * values[1][c] + values[0][c]. */
enum { AS_IS, MULTIPLIED, DIVIDED, AFFINE };

typedef struct {
    int32_t kind, mode;
    int32_t result, left, right; /* registers, 0 to 5 */
    int32_t buffer, channel;     /* a buffer, and its channel that goes with the sweep's channel `first` */
    int32_t first, last;         /* the operation is for the sweep's channels first..last - 1 (of each group); multiples of 16 */
    int32_t spread;              /* whether the buffer's one channel goes with all of the sweep's */
    const float *values[3];      /* [channels] of the sweep */
    const float *low;            /* [channels] */
    float high;
    int32_t offset;
    int32_t copy; /* of DO_CODES: 1 + the place in PictureBuffers.codes where a copy of the buffer without border goes; 0: nowhere */
} Elementwise;

/* What a sweep's register 0 holds at first. */
enum {
    FROM_MAPS,     /* nothing: operations load what they read */
    FROM_PICTURE,  /* (pixel / 255 - mean) * range, or, where mean is NULL, the pixel */
    FROM_CONV,     /* conv of the input */
    FROM_INDEX,    /* channels of the input, one pixel for enlarge x enlarge ones */
    FROM_BILINEAR, /* the input, enlarged; between pixels' centres */
    FROM_MEAN,     /* the input's mean over all pixels */
    FROM_RING,     /* a collapsed tail's values, with the kernels of the network's `ring`, at the picture's border; only shown */
};

/* How a convolution is computed: in Winograd's form; tap by tap, weights being [size][size * C / g][P][g] and `start` [P]; tap by tap in
   float64, of float32 and weights [size][size][inputs][P] of float64. */
enum { IN_TILES, IN_TAPS, IN_DOUBLES };

/* For every pixel of a map: a source, then operations on its values. */
typedef struct {
    int32_t source;
    int32_t input;    /* a buffer; not of FROM_MAPS and FROM_PICTURE */
    int32_t factor;   /* of the source's pixels, as a buffer's */
    int32_t channels; /* of the source; a multiple of 16 */
    int32_t shuffle;  /* r: channels are r * r groups, and group i * r + j goes to pixel (y * r + i, x * r + j) of what operations read and write */
    int32_t enlarge;
    int32_t form; /* of FROM_CONV */
    int32_t size; /* of its kernel: 1, 3 or 5; IN_TILES 3, or 5 in blocks, not of bytes */
    int32_t inputs;
    Conv conv;
    const int32_t *index; /* of FROM_INDEX: [enlarge * enlarge][channels] the input's channel, or -1 for 0; NULL: the same channels */
    const float *mean;    /* [3] */
    float range;
    int32_t operations;
    const Elementwise *operation;
} Sweep;

/* A network as a list of sweeps over its maps, in order. */
typedef struct {
    int32_t buffers, slots, sweeps;
    const Buffer *buffer;
    const Sweep *sweep;
} Program;

typedef struct {
    int32_t channels; /* C, a multiple of 16; a QuantSR-T's are padded */
    int32_t blocks;   /* at least 1; 0 with swin */
    int32_t gaps;
    int32_t factor;     /* of upscaling */
    const double *head; /* [3][3][3 colours][C] */
    const float *head_bias;
    const float *mean; /* [3] */
    float range;       /* the head reads (pixel / 255 - mean) * range */
    const float *gap;  /* [gaps] shortcuts of the skipped blocks before the first */
    const Block *body;
    Conv after_body, tail;          /* FLOATS, or both WORDS, or both SPLIT; with swin and program there is no tail, and with FLOATS there may be no
                                       after_body (its weight is NULL): sweeps then go on with the last LayerNorm's result */
    const float *after_body_factor; /* of WORDS and SPLIT, and with swin: [C] a 16-bit input is clip(rint(x * factor[c])), within -8191..8191 */
    const float *tail_factor;
    Ring ring;
    const Swin *swin;       /* NULL: a QuantSR-C */
    const Program *program; /* where it is not NULL, it is all of the network, and of the other fields only `factor` and `ring` are read; with swin it
                               is what the groups say, and what follows them */
} Network;

typedef struct {
    const void *image; /* (height, width, 3) */
    void *out;         /* (height * factor, width * factor, 3) */
    int32_t height, width;
    int32_t is_float; /* float32 in 0..255, neither rounded before nor after; else uint8 */
    int32_t threads;
    /* NULL, or where copies of the codes go, for tests, as the low bytes of the codes: of a QuantSR-C [2 * blocks] maps
       [height][width][C], the inputs of conv1 and conv2 of each block; of a QuantSR-T [4 * layers], the inputs of qkv, proj, fc1 and fc2 of
       each Swin layer less their lowest code, [window][I / 4][token][4 inputs]; of a program where its operations say. */
    uint8_t *const *codes;
} PictureBuffers;

/* One field of a structure, or, where `field` is NULL, a whole structure. */
typedef struct {
    const char *structure, *field;
    int32_t offset, size; /* in bytes */
} LayoutEntry;

/* Instruction sets, as numbers that stay; library.py has them in the order of their speed. */
enum { PLAIN = 1, AVX2 = 2, AVX512_VNNI = 3, AMX = 4, NEON = 5, NEON_DOTPROD = 6, NEON_I8MM = 7, AVX_VNNI = 8 };

#define EXPORT __attribute__((visibility("default")))

/* QUANTSR_ABI when the library was compiled. */
EXPORT int quantsr_abi(void);

/* The layout of the structures above when the library was compiled; the last entry's `structure` is NULL. */
EXPORT const LayoutEntry *quantsr_layout(void);

/* Bit i: this processor has the instruction set i, and there are kernels for it. */
EXPORT int quantsr_isas(void);

/* Bytes of memory that quantsr_run needs for a picture; 0: the arguments are out of range. */
EXPORT size_t quantsr_memory(const Network *net, const PictureBuffers *picture);

/* Upscales a picture in `memory`, aligned to 64 bytes. 0: done; 1: the arguments are out of range, and nothing is written. */
EXPORT int quantsr_run(const Network *net, const PictureBuffers *picture, int isa, void *memory);

#endif
