/* Fuses raw frames as they come, as `amdanet stream` does: rgb24 and gray8 frames by turns on standard input, fused rgb24
 * frames on standard output. This thread reads, one of the session computes, a third writes.
 *     cc -std=c99 -o pipeline pipeline.c $(pkg-config --cflags --libs amdanet) -lpthread
 *     ./pipeline WEIGHTS WIDTH HEIGHT <frames >fused */
#define _POSIX_C_SOURCE 200809L
#include <amdanet.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>

/* One to read, one to compute, one to write, one to spare. */
#define SLOTS 4

struct slot {
    unsigned char *pair;
    amdanet_frame frame;
    uint64_t ticket; /* 0: no frame, the input has ended. */
};

/* The reader fills slots in turn, the writer empties them in the same order. */
static struct slot slots[SLOTS];
static sem_t empty, full;

static void require(int good, const char *what, const char *why)
{
    if (!good) {
        fprintf(stderr, "pipeline: %s: %s\n", what, why);
        exit(EXIT_FAILURE);
    }
}

static void check(amdanet_status status)
{
    char message[1000];
    amdanet_last_error(message, sizeof message);
    require(status == AMDANET_STATUS_OK, amdanet_status_name(status), message);
}

static void take(sem_t *semaphore)
{
    while (sem_wait(semaphore) != 0 && errno == EINTR) {
    }
}

static void *write_frames(void *session)
{
    for (size_t i = 0;; i++) {
        const struct slot *slot = &slots[i % SLOTS];
        take(&full);
        if (slot->ticket == 0) {
            return NULL;
        }
        check(amdanet_session_wait(session, slot->ticket, AMDANET_WAIT_FOREVER));
        const amdanet_buffer *fused = &slot->frame.fused;
        int written = fwrite(fused->data, fused->length, 1, stdout) == 1 && fflush(stdout) == 0;
        require(written, "standard output", "cannot be written");
        sem_post(&empty);
    }
}

static uint32_t side(const char *argument)
{
    char *end;
    unsigned long side = strtoul(argument, &end, 10);
    require(*end == 0 && side - 1 < 16384, argument, "width and height must be 1 to 16384");
    return (uint32_t)side;
}

int main(int count, char **arguments)
{
    require(count == 4, "usage", "pipeline WEIGHTS WIDTH HEIGHT <frames >fused");
    const uint32_t width = side(arguments[2]), height = side(arguments[3]);
    const amdanet_session_params params = {
        .struct_size = sizeof params, .width = width, .height = height, .queue = SLOTS};
    amdanet_model *model = NULL;
    amdanet_session *session = NULL;
    check(amdanet_model_load(arguments[1], NULL, &model));
    check(amdanet_session_create(model, &params, &session));
    amdanet_model_free(model);

    const size_t pixels = (size_t)width * height, length = 4 * pixels;
    for (struct slot *slot = slots; slot < slots + SLOTS; slot++) {
        slot->pair = malloc(length + 3 * pixels);
        require(slot->pair != NULL, "out of memory", "try smaller frames");
        slot->frame = (amdanet_frame){
            .struct_size = sizeof slot->frame, .width = width, .height = height,
            .visible = {.data = slot->pair, .length = 3 * pixels},
            .infrared = {.data = slot->pair + 3 * pixels, .length = pixels, .channels = AMDANET_CHANNELS_GRAY},
            .fused = {.data = slot->pair + length, .length = 3 * pixels}};
    }
    pthread_t writer;
    int started = sem_init(&empty, 0, SLOTS) == 0 && sem_init(&full, 0, 0) == 0 &&
                  pthread_create(&writer, NULL, write_frames, session) == 0;
    require(started, "threads", "cannot be started");

    size_t frames = 0, got;
    do {
        struct slot *slot = &slots[frames % SLOTS];
        take(&empty);
        got = fread(slot->pair, 1, length, stdin);
        slot->ticket = 0;
        if (got == length) {
            check(amdanet_session_submit(session, &slot->frame, &slot->ticket));
            frames++;
        }
        sem_post(&full);
    } while (got == length);
    pthread_join(writer, NULL);
    require(!ferror(stdin), "standard input", "cannot be read");
    require(got == 0, "standard input", "ends within a pair");
    require(frames > 0, "standard input", "has no frame");
    amdanet_session_free(session);
    for (size_t i = 0; i < SLOTS; i++) {
        free(slots[i].pair);
    }
    return EXIT_SUCCESS;
}
