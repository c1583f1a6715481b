// amdanet.h for C++17: statuses become exceptions, models and sessions free themselves. Copy it into your project.
#pragma once

#include <amdanet.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace amdanet {

// What a call returned instead of AMDANET_STATUS_OK; what() is the library's message.
class Error : public std::runtime_error {
public:
    Error(amdanet_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    [[nodiscard]] amdanet_status status() const noexcept { return status_; }

private:
    amdanet_status status_;
};

inline void check(amdanet_status status)
{
    if (status != AMDANET_STATUS_OK) {
        std::string message(amdanet_last_error(nullptr, 0) + 1, '\0');
        message.resize(amdanet_last_error(message.data(), message.size()));
        throw Error(status, message);
    }
}

// The defaults; sizes and data are still to be set.
[[nodiscard]] inline amdanet_frame frame()
{
    amdanet_frame frame;
    check(amdanet_frame_init(&frame, sizeof frame));
    return frame;
}

[[nodiscard]] inline amdanet_session_params session_params()
{
    amdanet_session_params params;
    check(amdanet_session_params_init(&params, sizeof params));
    return params;
}

// A network. It can be moved, not copied; threads may share it. A model that was moved from throws Error.
class Model {
public:
    explicit Model(const std::string &path, const amdanet_load_params *params = nullptr)
    {
        amdanet_model *model = nullptr;
        check(amdanet_model_load(path.c_str(), params, &model));
        model_.reset(model);
    }

    // The bytes of such a file.
    Model(const void *data, std::size_t length, const amdanet_load_params *params = nullptr)
    {
        amdanet_model *model = nullptr;
        check(amdanet_model_load_memory(data, length, params, &model));
        model_.reset(model);
    }

    // Its names live as long as the model.
    [[nodiscard]] amdanet_model_info info() const
    {
        amdanet_model_info info{};
        info.struct_size = sizeof info;
        check(amdanet_model_get_info(get(), &info));
        return info;
    }

    // Class `index`, below info().classes. Its name lives as long as the model.
    [[nodiscard]] amdanet_class class_info(std::uint32_t index) const
    {
        amdanet_class info{};
        info.struct_size = sizeof info;
        check(amdanet_model_get_class(get(), index, &info));
        return info;
    }

    [[nodiscard]] const amdanet_model *get() const noexcept { return model_.get(); }

private:
    struct Free {
        void operator()(amdanet_model *model) const noexcept { amdanet_model_free(model); }
    };
    std::unique_ptr<amdanet_model, Free> model_;
};

// What computes with a model, one frame at a time. It can be moved, not copied, and may outlive the model.
class Session {
public:
    explicit Session(const Model &model, const amdanet_session_params *params = nullptr)
    {
        amdanet_session *session = nullptr;
        check(amdanet_session_create(model.get(), params, &session));
        session_.reset(session);
    }

    void run(const amdanet_frame &frame) { check(amdanet_session_run(get(), &frame)); }

    // The number to wait for. The frame's pictures and buffers must stay until then.
    [[nodiscard]] std::uint64_t submit(const amdanet_frame &frame)
    {
        std::uint64_t ticket = 0;
        check(amdanet_session_submit(get(), &frame, &ticket));
        return ticket;
    }

    void wait(std::uint64_t ticket) { check(amdanet_session_wait(get(), ticket, AMDANET_WAIT_FOREVER)); }

    // Whether the frame is done within some milliseconds.
    [[nodiscard]] bool wait_for(std::uint64_t ticket, std::uint32_t milliseconds)
    {
        const amdanet_status status = amdanet_session_wait(get(), ticket, milliseconds);
        if (status != AMDANET_STATUS_TIMEOUT) {
            check(status);
        }
        return status == AMDANET_STATUS_OK;
    }

    [[nodiscard]] amdanet_session_info info() const
    {
        amdanet_session_info info{};
        info.struct_size = sizeof info;
        check(amdanet_session_get_info(get(), &info));
        return info;
    }

    [[nodiscard]] amdanet_session *get() const noexcept { return session_.get(); }

private:
    struct Free {
        void operator()(amdanet_session *session) const noexcept { amdanet_session_free(session); }
    };
    std::unique_ptr<amdanet_session, Free> session_;
};

} // namespace amdanet
