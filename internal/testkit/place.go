package testkit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// place is a server's folder and its ports. Both are this process's own until release.
type place struct {
	dir   string
	locks []*os.File // the folder's first, then one for each port
}

// newPlace makes a folder for a server. It also removes the folders of test processes that died.
func newPlace(ctx context.Context, kind string) (*place, error) {
	home, err := serversHome()
	if err != nil {
		return nil, err
	}
	servers := filepath.Join(home, "servers")
	if err := os.MkdirAll(servers, 0o755); err != nil { //nolint:gosec // see ownFolder
		return nil, fmt.Errorf("make a folder for the servers: %w", err)
	}
	// Nobody may sweep between the making of the folder and its lock.
	all, err := acquireLock(ctx, servers+".lock")
	if err != nil {
		return nil, err
	}
	defer all.Close() //nolint:errcheck // closing a lock file gives the lock back in any case
	if err := sweep(servers); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(servers, kind+"-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for %s: %w", kind, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // see ownFolder
		return nil, fmt.Errorf("open the folder for %s: %w", kind, err)
	}
	lock, err := tryLock(dir + ".lock")
	if err != nil {
		return nil, fmt.Errorf("lock the folder for %s: %w", kind, err)
	}
	return &place{dir: dir, locks: []*os.File{lock}}, nil
}

// inMemory is whether servers' data goes to memory where there is room: the tests', not the benchmark's.
var inMemory atomic.Bool

// memory is the file system in memory that Linux has for everybody.
const memory = "/dev/shm"

// serversHome returns the folder that new servers' data goes to. In memory tests take half the time, most of which is the making and removing of indexes' files. They
// lose nothing by it: what ends a server here is a signal, and then files keep what was written to them wherever they are.
func serversHome() (string, error) {
	if inMemory.Load() && roomInMemory() {
		return ownFolder(memory)
	}
	return testbed()
}

// roomInMemory tells whether there are 8 GiB for files in memory, of which a test process's servers may take about half.
func roomInMemory() bool {
	const room = 8 << 30
	var files syscall.Statfs_t
	if err := syscall.Statfs(memory, &files); err != nil || files.Bavail*uint64(files.Bsize) < room { //nolint:gosec // a block's size is positive
		return false
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return false
	}
	_, available, _ := strings.Cut(string(text), "MemAvailable:")
	var kB uint64
	if _, err := fmt.Sscan(available, &kB); err != nil {
		return false
	}
	return kB<<10 >= room
}

// sweep removes the folders in servers whose lock nobody holds.
func sweep(servers string) error {
	locks, err := filepath.Glob(filepath.Join(servers, "*.lock"))
	if err != nil {
		return fmt.Errorf("look for old servers: %w", err)
	}
	for _, path := range locks {
		lock, err := tryLock(path)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look for old servers: %w", err)
		}
		if err := errors.Join(removeFolder(strings.TrimSuffix(path, ".lock")), os.Remove(path), lock.Close()); err != nil {
			return fmt.Errorf("remove an old server's folder: %w", err)
		}
	}
	return nil
}

// release removes the folder and gives the ports back.
func (p *place) release() error {
	err := errors.Join(removeFolder(p.dir), os.Remove(p.dir+".lock"))
	for _, lock := range p.locks {
		err = errors.Join(err, lock.Close())
	}
	if err != nil {
		return fmt.Errorf("remove a server's folder: %w", err)
	}
	return nil
}

// removeFolder removes a server's folder with its disks.
func removeFolder(dir string) error {
	if err := unmountDisks(dir); err != nil {
		return err // rather than remove what is on them
	}
	return os.RemoveAll(dir)
}

// port returns a free TCP port that is the place's own until release, see reservePort.
func (p *place) port() (int, error) {
	port, lock, err := reservePort()
	if err != nil {
		return 0, err
	}
	p.locks = append(p.locks, lock)
	return port, nil
}

// reservePort returns a free TCP port of 127.0.0.1 that no other testkit server gets before the lock is
// closed, also while the server is down. It lies below the range that the kernel takes ports for outgoing
// connections from: otherwise a client that keeps dialling a stopped server would now and then get its
// port, or even connect to itself.
func reservePort() (int, *os.File, error) {
	home, err := testbed()
	if err != nil {
		return 0, nil, err
	}
	ports := filepath.Join(home, "ports")
	if err := os.MkdirAll(ports, 0o700); err != nil {
		return 0, nil, fmt.Errorf("make a folder for port locks: %w", err)
	}
	low := 10_000
	high := 32_768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if _, err := fmt.Sscan(string(text), &high); err != nil {
			return 0, nil, fmt.Errorf("read the range of ephemeral ports: %w", err)
		}
	}
	if high < low+1000 { // a machine with an unusual range: there any port is as good as another
		low, high = 10_000, 65_536
	}
	const tries = 1000
	for range tries {
		port := low + rand.IntN(high-low) //nolint:gosec // a port, not a secret
		lock, err := tryLock(filepath.Join(ports, strconv.Itoa(port)))
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return 0, nil, fmt.Errorf("lock a port: %w", err)
		}
		if !free(port) {
			if err := lock.Close(); err != nil {
				return 0, nil, fmt.Errorf("unlock a port: %w", err)
			}
			continue
		}
		return port, lock, nil
	}
	return 0, nil, fmt.Errorf("found no free port in %d tries", tries)
}

// onFreePorts calls start, which takes new ports and starts a server on them, again when a stranger took
// one of them meanwhile.
func onFreePorts(start func() error) error {
	const attempts = 5
	var err error
	for range attempts {
		if err = start(); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return fmt.Errorf("after %d attempts: %w", attempts, err)
}

func free(port int) bool {
	listener, err := net.Listen("tcp", address(port)) //nolint:noctx // ends at once
	if err != nil {
		return false
	}
	return listener.Close() == nil
}

func address(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}
