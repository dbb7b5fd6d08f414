/* The entry points, which network.h describes. */

#include "kernels.h"

#include <string.h>

/* Bytes of the maps of the network's body, a multiple of 64; behind them those of a program, if any. */
static size_t body_memory(const Network *net, const PictureBuffers *picture) {
    Maps maps;
    Plan plan;
    Scratch scratch[MAX_THREADS];
    return net->program && !net->swin ? 0 : lay_out(net, picture, NULL, &maps, &plan, scratch);
}

size_t quantsr_memory(const Network *net, const PictureBuffers *picture) {
    if (!is_in_range(net, picture)) return 0;
    return body_memory(net, picture) + (net->program ? program_memory(net, picture) : 0);
}

int quantsr_run(const Network *net, const PictureBuffers *picture, int isa, void *memory) {
    if (!is_in_range(net, picture) || !is_for_isa(net, isa) || !memory || (uintptr_t)memory % 64) return 1;
    Maps maps = {0};
    if (!net->program || net->swin) {
        Plan plan;
        Scratch scratch[MAX_THREADS];
        lay_out(net, picture, memory, &maps, &plan, scratch);
        make_plan(net, picture, &plan);
        memset(plan.done, 0, plan.units);
        fill_maps(net, picture, &maps);
        run_threads(net, picture, &maps, &plan, scratch, kernels_of(isa, net->swin != NULL));
    }
    if (net->program) run_program(net, picture, isa, (char *)memory + body_memory(net, picture), maps.start);
    return 0;
}
