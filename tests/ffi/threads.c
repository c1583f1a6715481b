/* Sessions and threads: four of one model, a session that is busy, a queue, and freeing in the middle of it. */
#include "check.h"
#include <pthread.h>

static unsigned char *visible, *infrared, *fused, *labels;
static amdanet_model *model;

static amdanet_frame prepared(struct pair *pair)
{
    amdanet_frame frame = frame_of(pair);
    frame.visible.data = visible;
    frame.infrared.data = infrared;
    return frame;
}

static void check_pair(const struct pair *pair)
{
    CHECK(memcmp(pair->fused, fused, WIDTH * HEIGHT * 3) == 0);
    CHECK(memcmp(pair->labels, labels, WIDTH * HEIGHT) == 0);
}

static void *four(void *own_threads)
{
    amdanet_session *session = session_of(model, own_threads == NULL ? 0 : 1);
    for (int i = 0; i < 5; i++) {
        struct pair pair = make_pair(WIDTH, HEIGHT);
        amdanet_frame frame = prepared(&pair);
        OK(amdanet_session_run(session, &frame));
        check_pair(&pair);
        free_pair(&pair);
    }
    amdanet_session_free(session);
    return NULL;
}

static void one_model_in_four_threads(void *own_threads)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, four, own_threads) == 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

/* A session that a callback holds in the middle of a frame. */
struct held {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    amdanet_session *session;
    struct pair pair;
    int inside, go_on, frees;
    uint64_t ticket;
};

static int32_t hold(void *user, uint64_t done, uint64_t total)
{
    struct held *held = (struct held *)user;
    (void)total;
    if (done != 3) {
        return 0;
    }
    /* What a callback may not do ends in a status, not in a deadlock. */
    amdanet_frame frame = prepared(&held->pair);
    FAILS(amdanet_session_run(held->session, &frame), BUSY, "computes another frame");
    if (held->ticket != 0) {
        FAILS(amdanet_session_wait(held->session, held->ticket, AMDANET_WAIT_FOREVER), BUSY, "callback");
    }
    pthread_mutex_lock(&held->mutex);
    held->inside = 1;
    pthread_cond_broadcast(&held->changed);
    while (!held->go_on) {
        pthread_cond_wait(&held->changed, &held->mutex);
    }
    pthread_mutex_unlock(&held->mutex);
    if (held->frees) {
        amdanet_session_free(held->session);
    }
    return 0;
}

static void until_inside(struct held *held)
{
    pthread_mutex_lock(&held->mutex);
    while (!held->inside) {
        pthread_cond_wait(&held->changed, &held->mutex);
    }
    held->inside = 0;
    pthread_mutex_unlock(&held->mutex);
}

static void go_on(struct held *held)
{
    pthread_mutex_lock(&held->mutex);
    held->go_on = 1;
    pthread_cond_broadcast(&held->changed);
    pthread_mutex_unlock(&held->mutex);
}

static void *run_held(void *user)
{
    struct held *held = (struct held *)user;
    struct pair pair = make_pair(WIDTH, HEIGHT);
    amdanet_frame frame = prepared(&pair);
    OK(amdanet_session_run(held->session, &frame));
    check_pair(&pair);
    free_pair(&pair);
    return NULL;
}

static struct held make_held(void)
{
    struct held held;
    memset(&held, 0, sizeof held);
    pthread_mutex_init(&held.mutex, NULL);
    pthread_cond_init(&held.changed, NULL);
    held.pair = make_pair(WIDTH, HEIGHT);
    return held;
}

static void start(struct held *held)
{
    amdanet_session_params params;
    OK(amdanet_session_params_init(&params, sizeof params));
    params.threads = 1;
    params.progress = hold;
    params.progress_user = held;
    OK(amdanet_session_create(model, &params, &held->session));
}

static void stop(struct held *held)
{
    free_pair(&held->pair);
    pthread_mutex_destroy(&held->mutex);
    pthread_cond_destroy(&held->changed);
}

static void busy(int frees_in_callback)
{
    struct held held = make_held();
    pthread_t thread;
    uint64_t ticket;
    amdanet_session_info info;
    amdanet_step step;
    start(&held);
    held.frees = frees_in_callback;
    CHECK(pthread_create(&thread, NULL, run_held, &held) == 0);
    until_inside(&held);
    amdanet_frame frame = prepared(&held.pair);
    info.struct_size = sizeof info;
    step.struct_size = sizeof step;
    FAILS(amdanet_session_run(held.session, &frame), BUSY, "session: it computes another frame");
    FAILS(amdanet_session_submit(held.session, &frame, &ticket), BUSY, "session: it computes a frame");
    FAILS(amdanet_session_get_info(held.session, &info), BUSY, "session");
    FAILS(amdanet_session_get_step(held.session, 0, &step), BUSY, "session");
    go_on(&held);
    if (!frees_in_callback) {
        /* Freed while another thread computes: that ends first. */
        amdanet_session_free(held.session);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    stop(&held);
}

static void *wait_cancelled(void *user)
{
    struct held *held = (struct held *)user;
    amdanet_status status = amdanet_session_wait(held->session, held->ticket, AMDANET_WAIT_FOREVER);
    /* The latter when this thread comes after the one that frees. */
    CHECK(status == AMDANET_STATUS_CANCELLED || status == AMDANET_STATUS_INVALID_ARGUMENT);
    char message[200];
    CHECK(amdanet_last_error(message, sizeof message) > 0 && strstr(message, "freed") != NULL);
    return NULL;
}

static void *free_it(void *user)
{
    struct held *held = (struct held *)user;
    amdanet_session_free(held->session);
    return NULL;
}

static void queue(void)
{
    struct held held = make_held();
    struct pair pairs[4];
    uint64_t tickets[4];
    start(&held);
    for (int i = 0; i < 4; i++) {
        pairs[i] = make_pair(WIDTH, HEIGHT);
    }
    /* Two at once is the default. */
    amdanet_frame frame = prepared(&pairs[0]);
    OK(amdanet_session_submit(held.session, &frame, &tickets[0]));
    until_inside(&held);
    frame = prepared(&pairs[1]);
    OK(amdanet_session_submit(held.session, &frame, &tickets[1]));
    FAILS(amdanet_session_submit(held.session, &frame, &tickets[2]), BUSY, "2 frames are submitted");
    FAILS(amdanet_session_run(held.session, &frame), BUSY, "computes another frame");
    FAILS(amdanet_session_wait(held.session, tickets[0], 0), TIMEOUT, "is not done yet");
    FAILS(amdanet_session_wait(held.session, tickets[1], 20), TIMEOUT, "is not done yet");
    FAILS(amdanet_session_wait(held.session, 77, 20), INVALID_ARGUMENT, "ticket: 77");
    go_on(&held);
    OK(amdanet_session_wait(held.session, tickets[1], AMDANET_WAIT_FOREVER));
    OK(amdanet_session_wait(held.session, tickets[0], AMDANET_WAIT_FOREVER));
    check_pair(&pairs[0]);
    check_pair(&pairs[1]);
    CHECK(tickets[0] != 0 && tickets[1] != tickets[0]);
    /* A pipeline: the next is submitted before the one before it is waited for. */
    for (int i = 0; i < 4; i++) {
        frame = prepared(&pairs[i]);
        memset(pairs[i].fused, 0, WIDTH * HEIGHT * 3);
        OK(amdanet_session_submit(held.session, &frame, &tickets[i]));
        if (i > 0) {
            OK(amdanet_session_wait(held.session, tickets[i - 1], 60000));
            check_pair(&pairs[i - 1]);
        }
    }
    OK(amdanet_session_wait(held.session, tickets[3], AMDANET_WAIT_FOREVER));
    check_pair(&pairs[3]);

    /* Freed with a frame under way, one in the queue, and a thread that waits for that. */
    pthread_t thread, freeing;
    held.go_on = held.inside = 0;
    held.ticket = 99;
    frame = prepared(&pairs[0]);
    memset(pairs[0].fused, 0, WIDTH * HEIGHT * 3);
    memset(pairs[1].fused, 0, WIDTH * HEIGHT * 3);
    OK(amdanet_session_submit(held.session, &frame, &tickets[0]));
    until_inside(&held);
    frame = prepared(&pairs[1]);
    OK(amdanet_session_submit(held.session, &frame, &held.ticket));
    CHECK(pthread_create(&thread, NULL, wait_cancelled, &held) == 0);
    CHECK(pthread_create(&freeing, NULL, free_it, &held) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    go_on(&held);
    CHECK(pthread_join(freeing, NULL) == 0);
    check_pair(&pairs[0]);
    CHECK(pairs[1].fused[0] == 0);
    for (int i = 0; i < 4; i++) {
        free_pair(&pairs[i]);
    }
    stop(&held);
}

int main(int count, char **arguments)
{
    size_t length;
    CHECK(count == 2);
    visible = contents(arguments[1], "visible", &length);
    infrared = contents(arguments[1], "infrared", &length);
    fused = contents(arguments[1], "fused", &length);
    labels = contents(arguments[1], "labels", &length);
    model = network(arguments[1]);
    one_model_in_four_threads(NULL);
    one_model_in_four_threads(&count);
    busy(0);
    busy(1);
    queue();
    amdanet_model_free(model);
    free(visible);
    free(infrared);
    free(fused);
    free(labels);
    return 0;
}
