/* FOLDER N SIZES: N frames of so many sizes in one session, between loading and freeing. Prints the process's size in pages
 * after ten, a half of them, and all. */
#include "check.h"

static long pages(void)
{
    long all, resident;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", &all, &resident) == 2);
    fclose(file);
    return resident;
}

int main(int count, char **arguments)
{
    CHECK(count == 4);
    int frames = atoi(arguments[2]), sizes = atoi(arguments[3]);
    amdanet_model *model = network(arguments[1]);
    amdanet_session *session = session_of(model, 1);
    uint64_t ticket;
    for (int i = 0; i < frames; i++) {
        struct pair pair = make_pair(32 + (uint32_t)(i % sizes % 4), 32 + (uint32_t)(i % sizes % 9));
        amdanet_frame frame = frame_of(&pair);
        if (i % 2 == 0) {
            OK(amdanet_session_run(session, &frame));
        } else {
            OK(amdanet_session_submit(session, &frame, &ticket));
            OK(amdanet_session_wait(session, ticket, AMDANET_WAIT_FOREVER));
        }
        free_pair(&pair);
        if (i + 1 == 10 || i + 1 == frames / 2 || i + 1 == frames) {
            printf("%ld\n", pages());
        }
    }
    amdanet_session_free(session);
    amdanet_model_free(model);
    return 0;
}
