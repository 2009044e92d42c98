/* Faults of the machine, for one process: preloaded, it makes system calls fail as the mapped file FAULTS says.
 *
 * The file holds one struct fault. `active` is set last and reset first by whoever writes it, so that no call sees
 * half of one. Calls are named without prefixes and suffixes of the C library: open, pwrite, rename, fork ...
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct fault {
	int active;
	int error;
	int hits;          /* calls that have failed */
	char calls[500];   /* " write fsync " */
	char pattern[512]; /* as of fnmatch(3), of the path; "*" also for calls without one */
};

static struct fault *fault;

__attribute__((constructor)) static void begin(void)
{
	const char *name = getenv("FAULTS");
	int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
	if (file < 0)
		abort();
	fault = mmap(NULL, sizeof *fault, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (fault == MAP_FAILED)
		abort();
	close(file);
}

static int fails(const char *call, const char *path)
{
	char word[32];

	if (!fault || !__atomic_load_n(&fault->active, __ATOMIC_ACQUIRE))
		return 0;
	snprintf(word, sizeof word, " %s ", call);
	if (!strstr(fault->calls, word) || fnmatch(fault->pattern, path, 0) != 0)
		return 0;
	__atomic_add_fetch(&fault->hits, 1, __ATOMIC_RELAXED);
	errno = fault->error;
	return 1;
}

static const char *path_of(int file, char *buffer)
{
	char link[64];
	ssize_t size;

	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	size = readlink(link, buffer, PATH_MAX - 1);
	buffer[size < 0 ? 0 : size] = '\0';
	return buffer;
}

static int fails_at(const char *call, int directory, const char *path)
{
	char buffer[2 * PATH_MAX];

	if (!fault || !fault->active)
		return 0;
	if (directory == AT_FDCWD || path[0] == '/')
		return fails(call, path);
	path_of(directory, buffer);
	strcat(buffer, "/");
	strncat(buffer, path, PATH_MAX);
	return fails(call, buffer);
}

static int fails_on(const char *call, int file)
{
	char buffer[PATH_MAX];

	return fault && fault->active && fails(call, path_of(file, buffer));
}

#define NEXT(result, name, ...) \
	static result (*next)(__VA_ARGS__); \
	if (!next) \
		next = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define OPEN(symbol) \
	int symbol(const char *path, int flags, ...) \
	{ \
		va_list rest; \
		mode_t mode; \
		NEXT(int, #symbol, const char *, int, ...); \
		va_start(rest, flags); \
		mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
		va_end(rest); \
		return fails("open", path) ? -1 : next(path, flags, mode); \
	}
OPEN(open)
OPEN(open64)

#define OPENAT(symbol) \
	int symbol(int directory, const char *path, int flags, ...) \
	{ \
		va_list rest; \
		mode_t mode; \
		NEXT(int, #symbol, int, const char *, int, ...); \
		va_start(rest, flags); \
		mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
		va_end(rest); \
		return fails_at("open", directory, path) ? -1 : next(directory, path, flags, mode); \
	}
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size)
{
	NEXT(ssize_t, "write", int, const void *, size_t);
	return fails_on("write", file) ? -1 : next(file, data, size);
}

#define PWRITE(symbol, type) \
	ssize_t symbol(int file, const void *data, size_t size, type offset) \
	{ \
		NEXT(ssize_t, #symbol, int, const void *, size_t, type); \
		return fails_on("write", file) ? -1 : next(file, data, size, offset); \
	}
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t splice(int from, off64_t *here, int to, off64_t *there, size_t size, unsigned flags)
{
	NEXT(ssize_t, "splice", int, off64_t *, int, off64_t *, size_t, unsigned);
	return fails_on("write", to) ? -1 : next(from, here, to, there, size, flags);
}

#define ON_FILE(symbol, call) \
	int symbol(int file) \
	{ \
		NEXT(int, #symbol, int); \
		return fails_on(call, file) ? -1 : next(file); \
	}
ON_FILE(fsync, "fsync")
ON_FILE(fdatasync, "fsync")

#define TRUNCATE(symbol, type) \
	int symbol(int file, type size) \
	{ \
		NEXT(int, #symbol, int, type); \
		return fails_on("truncate", file) ? -1 : next(file, size); \
	}
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int mkdir(const char *path, mode_t mode)
{
	NEXT(int, "mkdir", const char *, mode_t);
	return fails("mkdir", path) ? -1 : next(path, mode);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
	NEXT(int, "mkdirat", int, const char *, mode_t);
	return fails_at("mkdir", directory, path) ? -1 : next(directory, path, mode);
}

int rename(const char *path, const char *other)
{
	NEXT(int, "rename", const char *, const char *);
	return fails("rename", other) ? -1 : next(path, other);
}

int renameat(int directory, const char *path, int there, const char *other)
{
	NEXT(int, "renameat", int, const char *, int, const char *);
	return fails_at("rename", there, other) ? -1 : next(directory, path, there, other);
}

int pipe2(int ends[2], int flags)
{
	NEXT(int, "pipe2", int *, int);
	return fails("pipe", "") ? -1 : next(ends, flags);
}

pid_t fork(void)
{
	NEXT(pid_t, "fork", void);
	return fails("fork", "") ? -1 : next();
}

/* A function cannot return into its caller twice, as vfork(2) does; a plain fork may stand for it. */
pid_t vfork(void)
{
	return fork();
}

/* The C library starts the child without calling fork. */
int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		const posix_spawnattr_t *attributes, char *const argv[], char *const env[])
{
	NEXT(int, "posix_spawn", pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
	     char *const *, char *const *);
	return fails("fork", "") ? fault->error : next(pid, path, actions, attributes, argv, env);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	NEXT(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
	return fails("thread", "") ? fault->error : next(thread, attributes, start, argument);
}
