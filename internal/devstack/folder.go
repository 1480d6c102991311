package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// folder is where a stack lives:
//
//	lock            held by the process that runs the stack
//	kafka/          kfake's data
//	kafka.log
//	postgres/       data/ run/ tmp/ and postgres.log: all that PostgreSQL's user may write
//	postgres.lock   held by the child, which may outlive a killed parent by a second
//	child.log       what the child had to say
//	auditsink       for root: this program, where the user nobody can read it
type folder struct {
	dir   string
	cache string // PostgreSQL's archive and programs, shared by all stacks
	guard string // for Once: the lock held while temporary folders come and go
	owner *owner // nil: we run PostgreSQL as ourselves
	lock  *lock
}

func (f *folder) kafka() string        { return filepath.Join(f.dir, "kafka") }
func (f *folder) postgres() string     { return filepath.Join(f.dir, "postgres") }
func (f *folder) postgresLog() string  { return filepath.Join(f.postgres(), "postgres.log") }
func (f *folder) postgresData() string { return filepath.Join(f.postgres(), "data") }
func (f *folder) postgresLock() string { return filepath.Join(f.dir, "postgres.lock") }

// onceName begins the names of temporary folders.
const onceName = "once-"

// openFolder chooses, makes and locks the folder.
func openFolder(ctx context.Context, o Options) (_ *folder, err error) {
	f := &folder{}
	if f.owner, err = postgresOwner(); err != nil {
		return nil, err
	}
	root, err := cacheRoot()
	if err != nil {
		return nil, err
	}
	f.cache = filepath.Join(root, "postgres-"+string(version))
	if err := f.owner.ownDir(f.cache); err != nil {
		return nil, err
	}

	base := o.Dir
	switch {
	case o.Once && base == "":
		base = root
	case base == "":
		base = filepath.Join(root, "dev")
	}
	if base, err = filepath.Abs(base); err != nil {
		return nil, fmt.Errorf("find the dev folder: %w", err)
	}
	if err := makeDir(base); err != nil {
		return nil, err
	}
	if o.Once {
		err = f.openOnce(ctx, base)
	} else {
		f.dir = base
		f.lock, err = tryLock(filepath.Join(f.dir, "lock"))
	}
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("another `auditsink dev` uses the folder %s: stop it first, or give this one another folder by --dir", f.dir)
	}
	if err != nil {
		return nil, err
	}
	if err := f.prepare(); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// openOnce makes a temporary folder in base, and first removes those that
// killed sessions have left there.
func (f *folder) openOnce(ctx context.Context, base string) error {
	f.guard = filepath.Join(base, "once.lock")
	guard, err := waitLock(ctx, f.guard)
	if err != nil {
		return err
	}
	defer guard.release()
	left, err := filepath.Glob(filepath.Join(base, onceName+"*"))
	if err != nil {
		return fmt.Errorf("look for temporary folders in %s: %w", base, err)
	}
	for _, dir := range left {
		if err := (&folder{dir: dir}).removeLeft(ctx); err != nil {
			return err
		}
	}
	if f.dir, err = os.MkdirTemp(base, onceName); err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	if f.lock, err = tryLock(filepath.Join(f.dir, "lock")); err != nil {
		return errors.Join(err, os.RemoveAll(f.dir))
	}
	return nil
}

// removeLeft removes a temporary folder unless somebody uses it.
func (f *folder) removeLeft(ctx context.Context) error {
	for _, name := range []string{filepath.Join(f.dir, "lock"), f.postgresLock()} {
		l, err := tryLock(name)
		if errors.Is(err, errLocked) {
			return nil
		}
		if err != nil {
			return err
		}
		defer l.release()
	}
	if err := stopOrphan(ctx, f.postgresData()); err != nil {
		return err
	}
	if err := os.RemoveAll(f.dir); err != nil {
		return fmt.Errorf("remove the folder of an earlier session: %w", err)
	}
	return nil
}

// prepare makes what is inside, for the user that runs PostgreSQL.
func (f *folder) prepare() error {
	if f.owner != nil {
		//nolint:gosec // G302: PostgreSQL's user has to pass through.
		if err := os.Chmod(f.dir, 0o755); err != nil {
			return fmt.Errorf("open the dev folder to user %s: %w", f.owner.name, err)
		}
		if err := f.owner.canReach(f.dir); err != nil {
			return err
		}
	}
	if err := f.owner.ownDir(f.postgres()); err != nil {
		return err
	}
	l, err := os.OpenFile(f.postgresLock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make PostgreSQL's lock file: %w", err)
	}
	return errors.Join(f.owner.own(l), l.Close())
}

func (f *folder) close() error {
	defer f.lock.release()
	if f.guard == "" {
		return nil
	}
	guard, err := waitLock(context.Background(), f.guard)
	if err != nil {
		return err
	}
	defer guard.release()
	if err := os.RemoveAll(f.dir); err != nil {
		return fmt.Errorf("remove the temporary folder: %w", err)
	}
	return nil
}

// cacheRoot is auditsink's folder in the user's cache directory. Root's own
// can't be entered by the user that PostgreSQL runs as.
func cacheRoot() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/auditsink", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a folder to keep PostgreSQL in: %w", err)
	}
	return filepath.Join(dir, "auditsink"), nil
}

// makeDir makes a folder and its parents; those it makes anyone may pass
// through, whatever the umask.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	//nolint:gosec // G301: PostgreSQL's user has to pass through.
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the folder: %w", err)
	}
	//nolint:gosec // G302: as above.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("open the folder: %w", err)
	}
	return nil
}

// owner is the user that runs PostgreSQL in place of root. All methods work on
// nil, which means ourselves.
type owner struct {
	name     string
	uid, gid int
}

// postgresOwner is nobody for root and nil for everybody else.
func postgresOwner() (*owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil means ourselves.
	}
	const name = "nobody"
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL refuses to run as root, and the user %s, to run it instead, can't be found: run auditsink dev as an ordinary user: %w", name, err)
	}
	uid, errUID := strconv.Atoi(u.Uid)
	gid, errGID := strconv.Atoi(u.Gid)
	if err := errors.Join(errUID, errGID); err != nil {
		return nil, fmt.Errorf("read the ids of user %s: %w", name, err)
	}
	return &owner{name: name, uid: uid, gid: gid}, nil
}

func (o *owner) own(f *os.File) error {
	if o == nil {
		return nil
	}
	if err := f.Chown(o.uid, o.gid); err != nil {
		return fmt.Errorf("give %s to user %s: %w", f.Name(), o.name, err)
	}
	return nil
}

// ownDir makes a folder that belongs to the owner.
func (o *owner) ownDir(dir string) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	d, err := os.Open(dir) //nolint:gosec // G304: a folder of ours.
	if err != nil {
		return fmt.Errorf("open the folder: %w", err)
	}
	return errors.Join(o.own(d), d.Close())
}

// canReach tells whether the owner may pass through all folders above dir.
func (o *owner) canReach(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("look at the folder: %w", err)
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("the folder %s is closed to the user %s, who runs PostgreSQL in place of root: give another folder by --dir", dir, o.name)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// program is the path of this program for the owner to run: for nobody a copy
// in the folder, since the original may lie where only root can go.
func (f *folder) program() (_ string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program's file: %w", err)
	}
	if f.owner == nil {
		return self, nil
	}
	src, err := os.Open(self) //nolint:gosec // G304: this program.
	if err != nil {
		return "", fmt.Errorf("read this program's file: %w", err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := os.CreateTemp(f.dir, "auditsink-")
	if err != nil {
		return "", fmt.Errorf("copy this program: %w", err)
	}
	_, err = io.Copy(dst, src)
	err = errors.Join(err, dst.Chmod(0o755), dst.Close())
	// A rename, since a file that an earlier child still runs can't be written.
	path := filepath.Join(f.dir, "auditsink")
	if err == nil {
		err = os.Rename(dst.Name(), path)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("copy this program: %w", err), os.Remove(dst.Name()))
	}
	return path, nil
}

// environment is ours for the child, without what would lead PostgreSQL or its
// client astray and without auditsink's settings, some of which are secret.
func (f *folder) environment(spec string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "PG"), strings.HasPrefix(name, "AUDITSINK_"), strings.HasPrefix(name, "LC_"):
		case name == "HOME", name == "TMPDIR", name == "LANG", name == "LANGUAGE", name == "TZ":
		default:
			env = append(env, kv)
		}
	}
	return append(env,
		childVariable+"="+spec,
		"HOME="+f.postgres(),
		"TMPDIR="+filepath.Join(f.postgres(), "tmp"),
		"LC_ALL=C",
	)
}
