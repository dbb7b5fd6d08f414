/* What a picture's phases are (head, every convolution or Swin layer, tail), their units of work, and the order of those. */

#include "kernels.h"

/* First convolution, layers and what closes their groups, last LayerNorm, and what follows that: all sweeps are in the program. */
static int swin_phases(const Network *net) {
    const Swin *swin = net->swin;
    int phases = 2 + (net->after_body.weight != NULL) + (net->program ? net->program->sweeps : 1);
    for (int g = 0; g < swin->groups; g++) phases += swin->group[g].layers + 2;
    return phases;
}

/* Swin layers before one of those of `group`. */
int layers_before(const Swin *swin, const Rstb *group, const SwinLayer *layer) {
    int count = layer - group->layer;
    for (const Rstb *other = swin->group; other < group; other++) count += other->layers;
    return count;
}

Step step_of(const Network *net, int phase) {
    const Swin *swin = net->swin;
    const Sweep *sweep = net->program ? net->program->sweep : NULL;
    if (phase-- == 0) return (Step){.kind = FIRST};
    for (int g = 0; g < swin->groups; g++) {
        const Rstb *group = swin->group + g;
        if (phase < group->layers) return (Step){.kind = LAYER, .group = group, .layer = group->layer + phase};
        phase -= group->layers;
        if (phase-- == 0) return (Step){.kind = SPREAD, .group = group};
        if (phase < group->sweeps) return (Step){.kind = SWEEP, .sweep = sweep + phase};
        phase -= group->sweeps;
        sweep += group->sweeps;
        if (phase-- == 0) return (Step){.kind = group->sweeps ? JOIN : CLOSING, .group = group};
    }
    if (phase-- == 0) return (Step){.kind = NORM};
    if (net->after_body.weight && phase-- == 0) return (Step){.kind = AFTER_BODY};
    return sweep ? (Step){.kind = SWEEP, .sweep = sweep + phase} : (Step){.kind = TAIL};
}

/* Rows of a QuantSR-C that a unit of a phase makes. */
int rows_of(const Network *net, int phase) {
    const int body = 2 * net->blocks;
    if (phase == 0 || phase == body + 3) return 1;
    if (phase > body) return TILE;
    const Block *block = net->body + (phase - 1) / 2;
    return phase % 2 ? block->conv1.tile : block->conv2.tile;
}

int phases_of(const Network *net) { return net->swin ? swin_phases(net) : 2 * net->blocks + (net->ring.weight[0] ? 4 : 3); }

int units_of(const Network *net, const PictureBuffers *picture, int phase) {
    const Swin *swin = net->swin;
    if (!swin) return (picture->height + rows_of(net, phase) - 1) / rows_of(net, phase);
    const Step step = step_of(net, phase);
    switch (step.kind) {
    case LAYER: return (picture->height / swin->window) * (picture->width / swin->window);
    case SWEEP: return units_of_sweep(step.sweep, picture);
    case CLOSING:
    case AFTER_BODY:
    case TAIL: return picture->height / TILE;
    default: return picture->height;
    }
}

/* The units of the phase before that one needs: in a QuantSR-C those that make, or last read, the rows that it reads or writes. */
void needs_of(const Network *net, const PictureBuffers *picture, Unit unit, int *from, int *to) {
    *from = 0, *to = units_of(net, picture, unit.phase - 1);
    if (net->swin) return;
    const int rows = rows_of(net, unit.phase), top = unit.number * rows, before = rows_of(net, unit.phase - 1);
    *from = MAX(0, top - BORDER) / before;
    *to = MIN(*to, (top + rows + BORDER + before - 1) / before);
}

/* Few threads take a QuantSR-C a few phases at a time, each some rows behind the one before it: rows are still in the cache when they are read
   again. Many would wait for each other; they take phase by phase, as a QuantSR-T is taken. */
void make_plan(const Network *net, const PictureBuffers *picture, Plan *plan) {
    enum { TOGETHER = 8, LAG = 8, MOST_THREADS = 4 };
    const int together = net->swin || picture->threads > MOST_THREADS ? 1 : TOGETHER, height = picture->height;
    Unit *next = plan->order;
    for (int phase = 0, first = 0; phase < plan->phases; phase++) {
        plan->first[phase] = first;
        first += units_of(net, picture, phase);
    }
    for (int group = 0; group < plan->phases; group += together) {
        const int end = MIN(group + together, plan->phases);
        if (together == 1) {
            for (int i = 0; i < units_of(net, picture, group); i++) *next++ = (Unit){group, i};
            continue;
        }
        int taken[TOGETHER] = {0};
        for (int front = LARGE_TILE; front < height + LARGE_TILE + LAG * together; front += LARGE_TILE)
            for (int phase = group; phase < end; phase++) {
                const int rows = rows_of(net, phase), units = units_of(net, picture, phase);
                int *number = &taken[phase - group];
                while (*number < units && MIN(height, (*number + 1) * rows) <= front - LAG * (phase - group)) *next++ = (Unit){phase, (*number)++};
            }
    }
}
