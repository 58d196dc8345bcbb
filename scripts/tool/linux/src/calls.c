/*
 * Linked into the kernel's own dirty_log_perf_test in front of three functions that it calls (the linker's --wrap), so that
 * one test runs on every kernel that is measured, and measures what it says.
 *
 * ioctl(): a kernel before 6.8 knows only the older call for memory regions; the newer one's structure begins with the
 * older one's and adds what this test doesn't use. And as the test has no option for it, eager splitting is switched on
 * here, right when the VM has been created, where the environment asks for it.
 *
 * memstress_set_random_access(), which the test calls before it starts the vCPUs: the guest draws its random numbers from
 * the test's seed, which the test of 6.12 doesn't bring into the guest's memory. With the seed 0 that lies there, the
 * first vCPU draws nothing but 0, and so writes always, and at random one page only.
 *
 * pthread_create(): a thread begins on the CPU of the one that creates it, which is the main thread; that spins until all
 * have begun. So each waited for a few scheduler ticks before it could go to the CPU that it is meant for, all of which
 * counted as populating memory. Here it begins on any other CPU.
 *
 * Called by all threads of the test; holds no state.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include <linux/kvm.h>

/* The environment variable with the number of bytes that are split at a time. */
#define EAGER_SPLIT_CHUNK "EAGER_SPLIT_CHUNK"

int __real_ioctl(int file, unsigned long request, ...);
int __wrap_ioctl(int file, unsigned long request, ...);

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

struct kvm_vm;
extern uint32_t guest_random_seed;
/* Where the test has mapped an address of the guest's. */
void *addr_gva2hva(struct kvm_vm *vm, uint64_t address);
void __real_memstress_set_random_access(struct kvm_vm *vm, bool random_access);
void __wrap_memstress_set_random_access(struct kvm_vm *vm, bool random_access);

/* Ends the test where the kernel can't split eagerly: what it measured would be something else. */
static void split_eagerly(int vm, const char *chunk)
{
	struct kvm_enable_cap capability = {
		.cap = KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE,
		.args = { strtoull(chunk, NULL, 0) },
	};

	if (__real_ioctl(vm, KVM_ENABLE_CAP, &capability) < 0) {
		printf("@linux error: this kernel has no eager splitting in chunks of %s bytes (%s)\n",
		       chunk, strerror(errno));
		exit(EXIT_FAILURE);
	}
}

/* What the newer call asks for, by the older one. */
static int set_memory_region(int vm, const struct kvm_userspace_memory_region2 *newer)
{
	struct kvm_userspace_memory_region older = {
		.slot = newer->slot,
		.flags = newer->flags,
		.guest_phys_addr = newer->guest_phys_addr,
		.memory_size = newer->memory_size,
		.userspace_addr = newer->userspace_addr,
	};

	return __real_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &older);
}

int __wrap_ioctl(int file, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);

	int result = __real_ioctl(file, request, argument);
	const char *chunk = getenv(EAGER_SPLIT_CHUNK);

	if (request == KVM_CREATE_VM && result >= 0 && chunk && *chunk)
		split_eagerly(result, chunk);
	else if (request == KVM_CHECK_EXTENSION && result == 0 && (unsigned long)argument == KVM_CAP_USER_MEMORY2)
		result = 1;
	else if (request == KVM_SET_USER_MEMORY_REGION2 && result < 0 && (errno == ENOTTY || errno == EINVAL))
		result = set_memory_region(file, argument);
	return result;
}

void __wrap_memstress_set_random_access(struct kvm_vm *vm, bool random_access)
{
	/* Guest and test are one program, with the same addresses. */
	memcpy(addr_gva2hva(vm, (uintptr_t)&guest_random_seed), &guest_random_seed, sizeof(guest_random_seed));
	__real_memstress_set_random_access(vm, random_access);
}

/* The test gives no attributes. Where these can't be made, or there is no other CPU, the thread begins here. */
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	pthread_attr_t elsewhere;
	cpu_set_t cpus;
	int error;

	memset(&cpus, 0xff, sizeof(cpus));
	CPU_CLR(sched_getcpu(), &cpus);
	if (attributes || pthread_attr_init(&elsewhere) != 0)
		return __real_pthread_create(thread, attributes, start, argument);
	pthread_attr_setaffinity_np(&elsewhere, sizeof(cpus), &cpus);
	error = __real_pthread_create(thread, &elsewhere, start, argument);
	pthread_attr_destroy(&elsewhere);
	return error ? __real_pthread_create(thread, NULL, start, argument) : 0;
}
