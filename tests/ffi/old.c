/* Programs that were compiled with an older and with a newer header than the library's. */
#include "check.h"
#include <stddef.h>

/* As if the last fields had come later. */
#define BEFORE(type, field) offsetof(type, field)

static void older(const char *folder, struct pair *pair)
{
    char *path = path_in(folder, "network.safetensors");
    amdanet_model *model = NULL;
    amdanet_session *session = NULL;
    /* What lies behind an older structure is none of the library's business. */
    amdanet_load_params load;
    memset(&load, 0xEE, sizeof load);
    OK(amdanet_load_params_init(&load, BEFORE(amdanet_load_params, bn_eps)));
    CHECK(load.struct_size == BEFORE(amdanet_load_params, bn_eps) && load.progress == NULL && load.reserved == 0xEEEEEEEE);
    OK(amdanet_model_load(path, &load, &model));
    free(path);
    amdanet_session_params params;
    memset(&params, 0xEE, sizeof params);
    OK(amdanet_session_params_init(&params, BEFORE(amdanet_session_params, threads) + 4));
    CHECK(params.memory_limit == 0 && params.width == 0xEEEEEEEE);
    params.threads = 1;
    OK(amdanet_session_create(model, &params, &session));
    amdanet_frame frame;
    amdanet_frame whole = frame_of(pair);
    memset(&frame, 0xEE, sizeof frame);
    memcpy(&frame, &whole, BEFORE(amdanet_frame, probabilities));
    frame.struct_size = BEFORE(amdanet_frame, probabilities);
    OK(amdanet_session_run(session, &frame));
    amdanet_model_info info;
    memset(&info, 0xEE, sizeof info);
    info.struct_size = BEFORE(amdanet_model_info, classes);
    OK(amdanet_model_get_info(model, &info));
    CHECK(info.struct_size == BEFORE(amdanet_model_info, classes) && strcmp(info.encoder, "nano") == 0 && info.classes == 0xEEEEEEEE);
    amdanet_session_free(session);
    amdanet_model_free(model);
}

static void newer(const char *folder, struct pair *pair)
{
    struct {
        amdanet_frame known;
        uint64_t more;
    } frame;
    struct {
        amdanet_model_info known;
        uint64_t more;
    } info;
    amdanet_model *model = network(folder);
    amdanet_session *session = session_of(model, 1);
    memset(&frame, 0, sizeof frame);
    OK(amdanet_frame_init(&frame.known, sizeof frame));
    CHECK(frame.known.struct_size == sizeof frame);
    frame.known = frame_of(pair);
    frame.known.struct_size = sizeof frame;
    OK(amdanet_session_run(session, &frame.known));
    frame.more = 1;
    FAILS(amdanet_session_run(session, &frame.known), UNSUPPORTED, "newer library");
    memset(&info, 0xEE, sizeof info);
    info.known.struct_size = sizeof info;
    OK(amdanet_model_get_info(model, &info.known));
    CHECK(info.known.struct_size == sizeof info && info.known.classes == CLASSES && info.more == 0);
    amdanet_session_free(session);
    amdanet_model_free(model);
}

int main(int count, char **arguments)
{
    CHECK(count == 2);
    struct pair pair = make_pair(WIDTH, HEIGHT);
    older(arguments[1], &pair);
    newer(arguments[1], &pair);
    free_pair(&pair);
    return 0;
}
