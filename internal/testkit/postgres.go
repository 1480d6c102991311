package testkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// PostgresOptions says which PostgreSQL to start.
type PostgresOptions struct {
	// Version is the major version, 15 or 18.
	Version int
	// Settings go before the defaults, which are those of PostgreSQL but for the connections (100)
	// and a small shared_buffers. In particular fsync is on.
	Settings map[string]string
	// Password makes the server ask for it, with SCRAM-SHA-256. Without one it trusts everybody.
	Password string
	// Certificates, if not nil, lets clients also connect with TLS.
	Certificates *CertificateFiles
}

// PostgresServer is a running PostgreSQL with its own data, on a port of 127.0.0.1 that stays the same
// over restarts. Its superuser is postgres. The methods that stop and start it are for one goroutine
// at a time.
type PostgresServer struct {
	options   PostgresOptions
	bin       string // the folder of the programs
	place     *place
	port      int
	process   *process
	account   *syscall.Credential // nil: this process's own
	databases atomic.Int64

	standbyOf *PostgresServer // nil: it is no standby
	name      string          // of a standby
}

// StartPostgres starts a server with an empty data folder. ctx bounds the start only. The caller must
// call Close.
func StartPostgres(ctx context.Context, options PostgresOptions) (*PostgresServer, error) {
	var home string
	var err error
	switch options.Version {
	case 15:
		home, err = postgres15(ctx)
	case 18:
		home, err = postgres18(ctx)
	default:
		err = fmt.Errorf("there is no PostgreSQL %d here, only 15 and 18", options.Version)
	}
	if err != nil {
		return nil, err
	}
	place, err := newPlace(ctx, "postgres"+strconv.Itoa(options.Version))
	if err != nil {
		return nil, err
	}
	server := &PostgresServer{options: options, bin: filepath.Join(home, "bin"), place: place}
	if err := server.create(ctx); err != nil {
		return nil, errors.Join(err, server.Close())
	}
	err = onFreePorts(func() error {
		var err error
		if server.port, err = place.port(); err != nil {
			return err
		}
		return server.start(ctx)
	})
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	return server, nil
}

// create makes the data folder.
func (s *PostgresServer) create(ctx context.Context) error {
	var err error
	if s.account, err = postgresAccount(); err != nil {
		return err
	}
	// initdb wants to own the folder that it makes its own in.
	if err := s.own(s.place.dir); err != nil {
		return err
	}
	args := []string{
		"-D", s.data(), "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--auth=trust",
	}
	if s.options.Password != "" {
		file := filepath.Join(s.place.dir, "password")
		if err := s.writeOwned(file, []byte(s.options.Password)); err != nil {
			return err
		}
		args = append(args, "--auth=scram-sha-256", "--pwfile="+file)
	}
	if err := run(s.command(ctx, "initdb", args...)); err != nil {
		if s.account != nil && errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("user nobody, who runs PostgreSQL for root, must be able to pass through %s: set TMPDIR to a folder where that is so: %w", s.place.dir, err)
		}
		return fmt.Errorf("make a database cluster: %w", err)
	}
	if files := s.options.Certificates; files != nil {
		return errors.Join(
			s.copyOwned(files.ServerCert, "server.crt"),
			s.copyOwned(files.ServerKey, "server.key"),
			s.copyOwned(files.CA, "root.crt"))
	}
	return nil
}

// postgresAccount returns the account to run Postgres as: nobody's for root, because both initdb and
// the server refuse to run as root.
func postgresAccount() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // no other account than our own is an answer
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("the uid of nobody: %w", err)
	}
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("the gid of nobody: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func (s *PostgresServer) data() string { return filepath.Join(s.place.dir, "data") }

func (s *PostgresServer) log() string { return filepath.Join(s.place.dir, "server.log") }

// command is one of PostgreSQL's programs, run as the account and in an environment of its own: PGHOST
// and the like of the caller's must not reach it.
func (s *PostgresServer) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = s.place.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + s.place.dir, "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.account}
	return cmd
}

// own gives a file to the account that Postgres runs as.
func (s *PostgresServer) own(path string) error {
	if s.account == nil {
		return nil
	}
	if err := os.Chown(path, int(s.account.Uid), int(s.account.Gid)); err != nil {
		return fmt.Errorf("give a file to PostgreSQL's account: %w", err)
	}
	return nil
}

func (s *PostgresServer) writeOwned(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("write a file for PostgreSQL: %w", err)
	}
	return s.own(path)
}

func (s *PostgresServer) copyOwned(from, name string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy a certificate: %w", err)
	}
	return s.writeOwned(filepath.Join(s.data(), name), content)
}

// start starts the server on its port and waits until it answers.
func (s *PostgresServer) start(ctx context.Context) error {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(s.port),
		"unix_socket_directories": "",
		"max_connections":         "100",
		"shared_buffers":          "32MB",
		"log_timezone":            "UTC",
	}
	if s.options.Certificates != nil {
		settings["ssl"] = "on"
		settings["ssl_ca_file"] = "root.crt"
	}
	maps.Copy(settings, s.options.Settings)
	args := []string{"-D", s.data()}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	var err error
	s.process, err = startProcess(s.command(context.WithoutCancel(ctx), "postgres", args...), s.log())
	if err != nil {
		return err
	}
	return s.process.ready(ctx, func(ctx context.Context) error {
		connection, err := pgx.Connect(ctx, s.URL("postgres"))
		if err != nil {
			return err
		}
		var data string
		err = connection.QueryRow(ctx, "SHOW data_directory").Scan(&data)
		if err == nil && data != s.data() {
			err = fmt.Errorf("another server answers, with its data in %s", data)
		}
		return errors.Join(err, connection.Close(ctx))
	})
}

// URL returns the URL of a database on this server, for its superuser.
func (s *PostgresServer) URL(database string) string {
	login := url.User("postgres")
	if s.options.Password != "" {
		login = url.UserPassword("postgres", s.options.Password)
	}
	u := url.URL{Scheme: "postgres", User: login, Host: address(s.port), Path: "/" + database}
	if s.options.Certificates == nil {
		u.RawQuery = "sslmode=disable"
	}
	return u.String()
}

// Address returns the host and port that the server listens on, also while it is down.
func (s *PostgresServer) Address() string { return address(s.port) }

// LogFile returns the path of the server's log.
func (s *PostgresServer) LogFile() string { return s.log() }

// CreateDatabase makes an empty database and returns its URL. DropDatabase removes it; so does Close.
func (s *PostgresServer) CreateDatabase(ctx context.Context) (string, error) {
	return s.createDatabase(ctx, "")
}

func (s *PostgresServer) createDatabase(ctx context.Context, options string) (string, error) {
	name := "test_" + strconv.FormatInt(s.databases.Add(1), 10)
	if err := s.exec(ctx, "CREATE DATABASE "+name+options); err != nil {
		return "", fmt.Errorf("create a database: %w", err)
	}
	return s.URL(name), nil
}

// DropDatabase removes the database of a URL from CreateDatabase, and ends the sessions on it.
func (s *PostgresServer) DropDatabase(ctx context.Context, databaseURL string) error {
	parsed, err := url.Parse(databaseURL)
	if err != nil {
		return fmt.Errorf("drop a database: %w", err)
	}
	name := pgx.Identifier{strings.TrimPrefix(parsed.Path, "/")}.Sanitize()
	if err := s.exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop a database: %w", err)
	}
	return nil
}

func (s *PostgresServer) exec(ctx context.Context, statement string) error {
	connection, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = connection.Exec(ctx, statement)
	return errors.Join(err, connection.Close(ctx))
}

// Stop ends the sessions and shuts the server down in order ("fast", Postgres chapter 18.5). The data
// stays. Stopping a server that is down does nothing.
func (s *PostgresServer) Stop() error { return s.process.stop(syscall.SIGINT) }

// Immediate ends the server without a checkpoint ("immediate"), so that the next start recovers from
// the WAL.
func (s *PostgresServer) Immediate() error { return s.process.stop(syscall.SIGQUIT) }

// Kill kills the server and every backend at once (SIGKILL), as a crash of the machine would, except
// that what was written reaches the disk.
func (s *PostgresServer) Kill() error { return s.process.kill() }

// Restart stops the server if it runs, and starts it again on the same port and data. ctx bounds the
// start.
func (s *PostgresServer) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.start(ctx)
}

// Pause freezes the server and its backends (SIGSTOP): connections stay open and nothing answers.
func (s *PostgresServer) Pause() error { return s.process.pause() }

// Continue lets a paused server go on.
func (s *PostgresServer) Continue() error { return s.process.unpause() }

// Close ends the server and removes its data.
func (s *PostgresServer) Close() error {
	var err error
	if s.process != nil {
		err = s.Immediate()
	}
	return errors.Join(err, s.place.release())
}
