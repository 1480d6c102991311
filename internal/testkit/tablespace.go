package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// SmallTablespace is a small disk with a tablespace on it. The WAL is elsewhere: when the disk is full, what needs room on it fails with
// disk_full (53100), and the server goes on. The disk goes with its server at the latest.
type SmallTablespace struct {
	server *PostgresServer
	name   string
	disk   string // where it is mounted
}

// SmallTablespace makes a disk of this many bytes, in memory, and a tablespace on it. A database without tables takes about 8 MB. Only root
// may do this. A server that has one can have no standby.
func (s *PostgresServer) SmallTablespace(ctx context.Context, size int64) (*SmallTablespace, error) {
	disk, err := newDisk(s.place.dir, size, s.account)
	if err != nil {
		return nil, fmt.Errorf("make a small disk: %w", err)
	}
	t := &SmallTablespace{server: s, name: filepath.Base(disk), disk: disk}
	if err := s.exec(ctx, "CREATE TABLESPACE "+t.name+" LOCATION '"+disk+"'"); err != nil {
		return nil, errors.Join(fmt.Errorf("create a tablespace: %w", err), unmount(disk))
	}
	return t, nil
}

// Name returns the tablespace's name, for SQL.
func (t *SmallTablespace) Name() string { return t.name }

// CreateDatabase makes an empty database on the disk and returns its URL. DropDatabase of the server removes it.
func (t *SmallTablespace) CreateDatabase(ctx context.Context) (string, error) {
	return t.server.createDatabase(ctx, " TABLESPACE "+t.name)
}

// Fill takes all room that is left on the disk, until Free. What has its place on the disk can still be changed there.
func (t *SmallTablespace) Fill() error {
	ballast, err := os.OpenFile(t.ballast(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("fill a small disk: %w", err)
	}
	_, err = io.Copy(ballast, zeros{})
	if closed := ballast.Close(); !errors.Is(err, syscall.ENOSPC) || closed != nil {
		return fmt.Errorf("fill a small disk: %w", errors.Join(err, closed))
	}
	return nil
}

// Free gives back what Fill took.
func (t *SmallTablespace) Free() error {
	if err := os.Remove(t.ballast()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free a small disk: %w", err)
	}
	return nil
}

func (t *SmallTablespace) ballast() string { return filepath.Join(t.disk, "ballast") }

// Close removes the tablespace, on which there must be no database any more, and the disk.
func (t *SmallTablespace) Close(ctx context.Context) error {
	if err := t.server.exec(ctx, "DROP TABLESPACE "+t.name); err != nil {
		return fmt.Errorf("remove a tablespace: %w", err)
	}
	if err := errors.Join(unmount(t.disk), os.Remove(t.disk)); err != nil {
		return fmt.Errorf("remove a small disk: %w", err)
	}
	return nil
}

// zeros is an endless file of zeros.
type zeros struct{}

func (zeros) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}

// disks is the folder in a server's own with the points where its disks are mounted.
const disks = "disks"

// newDisk mounts a disk of this many bytes in a server's folder, for the account that the server runs as.
func newDisk(server string, size int64, account *syscall.Credential) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("only root may mount one: run the tests as root")
	}
	folder := filepath.Join(server, disks)
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // see ownFolder
		return "", err
	}
	disk, err := os.MkdirTemp(folder, "small_")
	if err != nil {
		return "", err
	}
	options := fmt.Sprintf("size=%d,mode=0700", size)
	if account != nil {
		options += fmt.Sprintf(",uid=%d,gid=%d", account.Uid, account.Gid)
	}
	const harmless = syscall.MS_NODEV | syscall.MS_NOEXEC | syscall.MS_NOSUID
	if err := syscall.Mount("auditsink-test", disk, "tmpfs", harmless, options); err != nil {
		return "", fmt.Errorf("mount a tmpfs on %s (a container needs CAP_SYS_ADMIN for that): %w", disk, err)
	}
	return disk, nil
}

// unmountDisks takes the disks out of a server's folder, so that it can be removed.
func unmountDisks(server string) error {
	entries, err := os.ReadDir(filepath.Join(server, disks))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if err := unmount(filepath.Join(server, disks, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// unmount does nothing when there is no disk. One that is in use, by a server that is about to end, goes when it no longer is.
func unmount(disk string) error {
	if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("unmount %s: %w", disk, err)
	}
	return nil
}
