/* The entry points, which network.h describes. */

#include "kernels.h"

#include <string.h>

size_t quantsr_memory(const Network *net, const PictureBuffers *picture) {
    Maps maps;
    Plan plan;
    Scratch scratch[MAX_THREADS];
    if (!is_in_range(net, picture)) return 0;
    if (net->program && !net->swin) return program_memory(net, picture);
    return lay_out(net, picture, NULL, &maps, &plan, scratch);
}

int quantsr_run(const Network *net, const PictureBuffers *picture, int isa, void *memory) {
    if (!is_in_range(net, picture) || !is_for_isa(net, isa) || !memory || (uintptr_t)memory % 64) return 1;
    if (net->program && !net->swin) {
        run_program(net, picture, isa, memory);
        return 0;
    }
    Maps maps = {0};
    Plan plan;
    Scratch scratch[MAX_THREADS];
    lay_out(net, picture, memory, &maps, &plan, scratch);
    make_plan(net, picture, &plan);
    memset(plan.done, 0, plan.units);
    fill_maps(net, picture, &maps);
    run_threads(net, picture, &maps, &plan, scratch, kernels_of(isa, net->swin != NULL));
    return 0;
}
