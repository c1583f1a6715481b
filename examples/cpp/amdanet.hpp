// amdanet.h for C++17: statuses become exceptions, models and sessions free themselves. Copy it into your project.
#pragma once

#include <amdanet.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

namespace amdanet {

// What a call returned instead of AMDANET_STATUS_OK; what() is the library's message.
struct Error : std::runtime_error {
    Error(amdanet_status error, const std::string &message) : std::runtime_error(message), status(error) {}
    amdanet_status status;
};

inline void check(amdanet_status status)
{
    if (status != AMDANET_STATUS_OK) {
        std::string message(amdanet_last_error(nullptr, 0) + 1, '\0');
        message.resize(amdanet_last_error(message.data(), message.size()));
        throw Error(status, message);
    }
}

// A structure that begins with its size. All else is 0, which is the default.
template <typename Structure> [[nodiscard]] Structure defaults()
{
    Structure structure{};
    structure.struct_size = sizeof structure;
    return structure;
}

// Lets a picture or buffer of a frame be a vector or array of numbers, which must stay until the frame is done.
template <typename Picture, typename Numbers> void set_data(Picture &picture, Numbers &numbers)
{
    picture.data = std::data(numbers);
    picture.length = std::size(numbers) * sizeof *std::data(numbers);
}

template <auto function> struct Free {
    template <typename Object> void operator()(Object *object) const noexcept { function(object); }
};

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
        auto info = defaults<amdanet_model_info>();
        check(amdanet_model_get_info(get(), &info));
        return info;
    }

    // Class `index`, below info().classes. Its name lives as long as the model.
    [[nodiscard]] amdanet_class class_info(std::uint32_t index) const
    {
        auto info = defaults<amdanet_class>();
        check(amdanet_model_get_class(get(), index, &info));
        return info;
    }

    [[nodiscard]] const amdanet_model *get() const noexcept { return model_.get(); }

private:
    std::unique_ptr<amdanet_model, Free<amdanet_model_free>> model_;
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
        auto info = defaults<amdanet_session_info>();
        check(amdanet_session_get_info(get(), &info));
        return info;
    }

    [[nodiscard]] amdanet_session *get() const noexcept { return session_.get(); }

private:
    std::unique_ptr<amdanet_session, Free<amdanet_session_free>> session_;
};

} // namespace amdanet
