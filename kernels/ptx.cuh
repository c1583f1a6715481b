// Everything that is written in PTX. The emulator of the tests has a file of this name with the same functions.
#pragma once
