package testkit

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // for pom.xml
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/xi2/xz"
)

//go:embed pom.xml
var pom []byte

// kafkaLibraries returns the folder of Kafka's jars, which it fetches the first time.
func kafkaLibraries(ctx context.Context) (string, error) {
	return artifact(ctx, "kafka", func(dir string) error {
		return copyDependencies(ctx, "kafka", dir)
	})
}

// connectLibraries returns the folder of the jars of Kafka Connect and of Debezium's JDBC sink, which it fetches the first time.
func connectLibraries(ctx context.Context) (string, error) {
	return artifact(ctx, "connect", func(dir string) error {
		return copyDependencies(ctx, "connect", dir)
	})
}

// postgres18 returns the folder above bin/postgres of PostgreSQL 18, which it fetches the first time.
func postgres18(ctx context.Context) (string, error) {
	return artifact(ctx, "postgres18", func(dir string) error {
		platform, ok := map[string]string{"amd64": "linux-amd64", "arm64": "linux-arm64v8"}[runtime.GOARCH]
		if !ok {
			return fmt.Errorf("there is no PostgreSQL 18 build for %s", runtime.GOARCH)
		}
		jars, err := os.MkdirTemp(dir, "jars-")
		if err != nil {
			return fmt.Errorf("make a download folder: %w", err)
		}
		if err := copyDependencies(ctx, "postgres", jars, "-Dpostgres.platform="+platform); err != nil {
			return err
		}
		found, err := filepath.Glob(filepath.Join(jars, "embedded-postgres-binaries-*.jar"))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("expected one PostgreSQL jar in %s, found %q", jars, found)
		}
		if err := unpackPostgres(found[0], dir); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(found[0]), err)
		}
		return os.RemoveAll(jars)
	})
}

// artifact returns the cache folder of that name. Where there is none, fill makes its content in a
// temporary folder that then takes the name, so that a folder of that name is always complete. The
// pom's hash is part of the name: a new version never mixes with an old one.
func artifact(ctx context.Context, name string, fill func(dir string) error) (string, error) {
	home, err := testbed()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(pom)
	dir := filepath.Join(home, name+"-"+runtime.GOARCH+"-"+hex.EncodeToString(sum[:6]))
	if exists(dir) {
		return dir, nil
	}
	lock, err := acquireLock(ctx, filepath.Join(home, name+".lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close() //nolint:errcheck // closing a lock file gives the lock back in any case
	if exists(dir) {   // another process was faster
		return dir, nil
	}
	temporary, err := os.MkdirTemp(home, name+"-new-")
	if err != nil {
		return "", fmt.Errorf("make a download folder: %w", err)
	}
	err = fill(temporary)
	if err == nil {
		err = os.Chmod(temporary, 0o755) //nolint:gosec // nobody, who runs Postgres for root, reads it
	}
	if err == nil {
		err = os.Rename(temporary, dir)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("fetch %s: %w", name, err), os.RemoveAll(temporary))
	}
	return dir, nil
}

// copyDependencies lets Maven copy the jars of one of the pom's profiles to dir.
func copyDependencies(ctx context.Context, profile, dir string, args ...string) error {
	mvn, err := program("mvn", "maven")
	if err != nil {
		return err
	}
	pomFile := filepath.Join(dir, "pom.xml")
	if err := os.WriteFile(pomFile, pom, 0o600); err != nil {
		return fmt.Errorf("write the pom: %w", err)
	}
	args = append([]string{
		"-q", "-B", "-f", pomFile, "-P" + profile,
		"dependency:copy-dependencies", "-DoutputDirectory=" + dir,
	}, args...)
	return run(exec.CommandContext(ctx, mvn, args...))
}

// program finds an executable, or says which Debian package has it.
func program(name, debianPackage string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed: apt-get install %s (%w)", name, debianPackage, err)
	}
	return path, nil
}

// run runs a short-lived command. Its output is in the error when it fails.
func run(cmd *exec.Cmd) error {
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, lastBytes(output.Bytes()))
	}
	return nil
}

// unpackPostgres unpacks the .txz in the jar to dir.
func unpackPostgres(jar, dir string) error {
	archive, err := zip.OpenReader(jar)
	if err != nil {
		return err
	}
	defer archive.Close() //nolint:errcheck // only read from
	names, err := fs.Glob(archive, "*.txz")
	if err != nil || len(names) != 1 {
		return fmt.Errorf("expected one .txz, found %q", names)
	}
	compressed, err := archive.Open(names[0])
	if err != nil {
		return err
	}
	defer compressed.Close() //nolint:errcheck // only read from
	plain, err := xz.NewReader(compressed, 0)
	if err != nil {
		return err
	}
	return untar(tar.NewReader(plain), dir)
}

// untar writes an archive's folders, files and symbolic links to dir, and nothing outside of it.
func untar(archive *tar.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only a handle on a folder
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := untarOne(root, header, archive); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
}

func untarOne(root *os.Root, header *tar.Header, content io.Reader) error {
	name := filepath.Clean(header.Name)
	if header.Typeflag == tar.TypeDir {
		return root.MkdirAll(name, 0o755)
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if header.Typeflag == tar.TypeSymlink {
		return root.Symlink(header.Linkname, name)
	}
	mode := fs.FileMode(0o644)
	if header.FileInfo().Mode()&0o100 != 0 {
		mode = 0o755
	}
	file, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

// postgres15 returns the folder above bin/postgres of Debian's PostgreSQL 15.
func postgres15(ctx context.Context) (string, error) {
	var tried []string
	// Debian keeps every major version in its own folder, off the PATH.
	candidates := []string{"/usr/lib/postgresql/15/bin"}
	if config, err := exec.LookPath("pg_config"); err == nil {
		if output, err := exec.CommandContext(ctx, config, "--bindir").Output(); err == nil {
			candidates = append(candidates, strings.TrimSpace(string(output)))
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		candidates = append(candidates, filepath.Dir(path))
	}
	for _, bin := range candidates {
		output, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
		if err == nil && strings.Contains(string(output), " 15.") {
			return filepath.Dir(bin), nil
		}
		tried = append(tried, bin)
	}
	return "", fmt.Errorf("PostgreSQL 15 is not installed (looked in %s): apt-get install postgresql-15", strings.Join(tried, ", "))
}

// testbed returns the folder of this user that the caches are in, and the servers' data where it isn't in memory.
func testbed() (string, error) { return ownFolder(os.TempDir()) }

// ownFolder returns this user's folder in a place that many share. Every user may pass through it, since
// Postgres runs as nobody when the tests run as root.
func ownFolder(parent string) (string, error) {
	dir := filepath.Join(parent, fmt.Sprintf("auditsink-testbed-%d", os.Getuid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // see above
		return "", fmt.Errorf("make the test bed's folder: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("look at the test bed's folder: %w", err)
	}
	// The name can be guessed, so somebody else may have made the folder to put programs there.
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(owner.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%s is not a folder that only this user can write: remove it", dir)
	}
	return dir, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// acquireLock waits for the lock on a file, which it makes if need be. Closing the file, or the end
// of the process, gives the lock back.
func acquireLock(ctx context.Context, path string) (*os.File, error) {
	var file *os.File
	err := poll(ctx, 50*time.Millisecond, func() error {
		var err error
		file, err = tryLock(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

// tryLock takes the lock on a file, or fails with syscall.EWOULDBLOCK when another holds it.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// poll calls try until it succeeds, at once and then every interval. When ctx ends it returns the
// last failure.
func poll(ctx context.Context, interval time.Duration, try func() error) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}
