// See tensor.h.
#pragma once
