/* Fuses raw frames as they come, as `amdanet stream` does: rgb24 and gray8 frames by turns on standard input, fused rgb24
 * frames on standard output. This thread reads, one of the session computes, a third writes.
 *
 *     cc -std=c99 -o pipeline pipeline.c $(pkg-config --cflags --libs amdanet) -lpthread
 *     ./pipeline WEIGHTS WIDTH HEIGHT <frames >fused
 */
#define _POSIX_C_SOURCE 200809L
#include <amdanet.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "pipeline: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static void check(amdanet_status status)
{
    if (status != AMDANET_STATUS_OK) {
        char message[1000];
        amdanet_last_error(message, sizeof message);
        fail(amdanet_status_name(status), message);
    }
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
        if (fwrite(fused->data, fused->length, 1, stdout) != 1 || fflush(stdout) != 0) {
            fail("standard output", strerror(errno));
        }
        sem_post(&empty);
    }
}

static uint32_t side(const char *argument)
{
    char *end;
    unsigned long side = strtoul(argument, &end, 10);
    if (*end != 0 || side == 0 || side > 16384) {
        fail(argument, "width and height must be 1 to 16384");
    }
    return (uint32_t)side;
}

int main(int count, char **arguments)
{
    if (count != 4) {
        fail("usage", "pipeline WEIGHTS WIDTH HEIGHT <frames >fused");
    }
    amdanet_session_params params;
    check(amdanet_session_params_init(&params, sizeof params));
    params.width = side(arguments[2]);
    params.height = side(arguments[3]);
    params.queue = SLOTS;
    amdanet_model *model = NULL;
    amdanet_session *session = NULL;
    check(amdanet_model_load(arguments[1], NULL, &model));
    check(amdanet_session_create(model, &params, &session));
    amdanet_model_free(model);

    const size_t pixels = (size_t)params.width * params.height, length = 4 * pixels;
    for (size_t i = 0; i < SLOTS; i++) {
        slots[i].pair = malloc(length + 3 * pixels);
        if (slots[i].pair == NULL) {
            fail("out of memory", "try smaller frames");
        }
        amdanet_frame *frame = &slots[i].frame;
        check(amdanet_frame_init(frame, sizeof *frame));
        frame->width = params.width;
        frame->height = params.height;
        frame->visible.data = slots[i].pair;
        frame->visible.length = 3 * pixels;
        frame->infrared.data = slots[i].pair + 3 * pixels;
        frame->infrared.length = pixels;
        frame->infrared.channels = AMDANET_CHANNELS_GRAY;
        frame->fused.data = slots[i].pair + length;
        frame->fused.length = 3 * pixels;
    }
    pthread_t writer;
    if (sem_init(&empty, 0, SLOTS) != 0 || sem_init(&full, 0, 0) != 0 ||
        pthread_create(&writer, NULL, write_frames, session) != 0) {
        fail("threads", "cannot be started");
    }

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
    if (ferror(stdin) || got > 0 || frames == 0) {
        fail("standard input", ferror(stdin) ? "cannot be read" : got > 0 ? "ends within a pair" : "has no frame");
    }
    amdanet_session_free(session);
    for (size_t i = 0; i < SLOTS; i++) {
        free(slots[i].pair);
    }
    return EXIT_SUCCESS;
}
