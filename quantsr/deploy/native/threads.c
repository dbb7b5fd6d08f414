/* Units of work on several threads. */

#include "kernels.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

/* How often a thread looks for what it waits for before it leaves its core to others. */
enum { SPINS = 2000 };

/* Work of one picture that its threads share. */
typedef struct {
    const Network *net;
    const PictureBuffers *picture;
    const Maps *maps;
    const Plan *plan;
    Kernels kernels;
    atomic_int next; /* place in the plan of the unit to take next */
} Team;

typedef struct {
    Team *team;
    Scratch scratch;
} Member;

/* Copies the codes that a unit of a QuantSR-C gave to where the picture wants them. */
static void copy_codes(const Network *net, const PictureBuffers *picture, const Maps *maps, Unit unit) {
    if (net->swin || unit.phase >= 2 * net->blocks) return;
    const int rows = rows_of(net, unit.phase), top = unit.number * rows;
    const size_t bytes = (size_t)picture->width * net->channels;
    const uint8_t *codes = unit.phase % 2 ? maps->codes2 : maps->codes1;
    for (int y = top; y < MIN(top + rows, picture->height); y++)
        memcpy(picture->codes[unit.phase] + y * bytes, codes + ((y + 1) * maps->code_row + 1) * net->channels, bytes);
}

static void *run_member(void *argument) {
    Member *member = argument;
    Team *team = member->team;
    const Plan *plan = team->plan;
    if (team->kernels.begin) team->kernels.begin();
    int complete = -1; /* the last phase all of whose units are known to be done */
    for (int place; (place = atomic_fetch_add(&team->next, 1)) < plan->units;) {
        const Unit unit = plan->order[place];
        if (unit.phase > 0 && complete < unit.phase - 1) {
            int from, to;
            needs_of(team->net, team->picture, unit, &from, &to);
            for (int i = from; i < to; i++)
                for (int spins = 0; !atomic_load_explicit(&plan->done[plan->first[unit.phase - 1] + i], memory_order_acquire); spins++)
                    if (spins >= SPINS) sched_yield();
            if (to - from == units_of(team->net, team->picture, unit.phase - 1)) complete = unit.phase - 1;
        }
        team->kernels.work(team->net, team->picture, team->maps, unit.phase, unit.number, &member->scratch);
        if (team->picture->codes) copy_codes(team->net, team->picture, team->maps, unit);
        atomic_store_explicit(&plan->done[plan->first[unit.phase] + unit.number], 1, memory_order_release);
    }
    if (team->kernels.end) team->kernels.end();
    return NULL;
}

/* Runs the units of a plan, none of them done, on the picture's threads, of which the caller's is one; `scratch` holds one for each. */
void run_threads(const Network *net, const PictureBuffers *picture, const Maps *maps, const Plan *plan, const Scratch *scratch, Kernels kernels) {
    Team team = {.net = net, .picture = picture, .maps = maps, .plan = plan, .kernels = kernels};
    Member members[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int started = 1;
    for (int i = 0; i < picture->threads; i++) members[i] = (Member){&team, scratch[i]};
    for (; started < picture->threads; started++)
        if (pthread_create(&threads[started], NULL, run_member, &members[started])) break;
    run_member(&members[0]);
    for (int i = 1; i < started; i++) pthread_join(threads[i], NULL);
}
