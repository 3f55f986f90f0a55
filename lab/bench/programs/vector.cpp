// SPDX-License-Identifier: GPL-2.0
/*
 * Records are pushed back to a vector that doubles when it is full, and then all are read.
 * usage: vector realloc|std
 *   realloc: the vector knows that its records may be moved as bytes, as Qt's and
 *	      folly's do, and grows by realloc()
 *   std:     std::vector, which copies them to a new place
 * It stops itself twice to be looked at: when it has grown, and when all was read.
 */
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string_view>
#include <type_traits>
#include <vector>

struct Record {
	std::uint64_t key;
	double value;
	std::uint32_t kind, size;
};

template <class T> class ReallocVector {
	static_assert(std::is_trivially_copyable_v<T>, "else it cannot be moved as bytes");
	T *items = nullptr;
	std::size_t count = 0, room = 0;

public:
	~ReallocVector()
	{
		std::free(items);
	}

	void push_back(const T &item)
	{
		if (count == room) {
			void *grown;

			room = room ? 2 * room : 64;
			grown = std::realloc(items, room * sizeof(T));
			if (!grown)
				throw std::bad_alloc();
			items = static_cast<T *>(grown);
		}
		items[count++] = item;
	}

	const T *begin() const
	{
		return items;
	}

	const T *end() const
	{
		return items + count;
	}
};

template <class Vector> static bool grow_and_read()
{
	constexpr std::uint64_t last = 15000000;	/* 360 MB */
	std::uint64_t sum = 0;
	Vector records;

	for (std::uint64_t key = 1; key <= last; key++)
		records.push_back({ key, key / 2.0, static_cast<std::uint32_t>(key % 7), 24 });
	std::raise(SIGSTOP);
	for (const Record &record : records)
		sum += record.key + record.size;
	std::raise(SIGSTOP);
	return sum == last * (last + 1) / 2 + last * 24;
}

int main(int argc, char **argv)
{
	const bool by_realloc = argc == 2 && std::string_view(argv[1]) == "realloc";

	if (by_realloc ? grow_and_read<ReallocVector<Record>>() :
			 grow_and_read<std::vector<Record>>())
		return 0;
	std::puts("wrong contents");
	return 1;
}
