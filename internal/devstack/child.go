package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// version of PostgreSQL that the stack runs.
const version = embedded.V18

// childVariable holds the childSpec in the environment of a child.
const childVariable = "AUDITSINK_DEVSTACK_CHILD"

// childSpec is what the child has to do.
type childSpec struct {
	Dir   string // data/ run/ tmp/ and postgres.log
	Lock  string // held by the child
	Cache string // the archive and the unpacked programs
	Port  int    // 0 means a free one
	Crash bool   // data must survive a crash of the machine
}

// report is one line of JSON from the child to its parent: exactly one member
// is set. A Failed is the last.
type report struct {
	Downloading bool   `json:",omitempty"`
	Port        int    `json:",omitempty"` // ready
	Failed      string `json:",omitempty"`
}

// maxReports is how many reports a child makes at most: one of each.
const maxReports = 3

// MaybeRunChild does nothing, unless this process was started as the child that
// runs PostgreSQL: then it does that and exits. It comes first in main.
func MaybeRunChild() {
	text, ok := os.LookupEnv(childVariable)
	if !ok {
		return
	}
	// By default each of these would end this process and leave PostgreSQL
	// behind: what counts for it is its parent's end. (Ignoring them would be
	// passed on to PostgreSQL, catching isn't.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE, syscall.SIGHUP, syscall.SIGINT)
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	go func() {
		// The parent never writes: this returns when it closes its end,
		// which the system does for one that was killed.
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	say := func(r report) { _ = json.NewEncoder(os.Stdout).Encode(r) } // a parent that's gone needs no report
	var c child
	err := json.Unmarshal([]byte(text), &c.childSpec)
	if err == nil {
		err = c.run(ctx, say)
	}
	if err != nil {
		say(report{Failed: err.Error()})
		os.Exit(1)
	}
	os.Exit(0)
}

// child runs PostgreSQL.
type child struct {
	childSpec
	server *embedded.EmbeddedPostgres
}

func (c *child) data() string        { return filepath.Join(c.Dir, "data") }
func (c *child) log() string         { return filepath.Join(c.Dir, "postgres.log") }
func (c *child) tmp() string         { return filepath.Join(c.Dir, "tmp") }
func (c *child) programs() string    { return filepath.Join(c.Cache, "programs") }
func (c *child) unpacked() string    { return filepath.Join(c.programs(), "complete") }
func (c *child) initialized() string { return filepath.Join(c.Dir, "initialized") }

// run returns nil when PostgreSQL was stopped since ctx ended.
func (c *child) run(ctx context.Context, say func(report)) error {
	held, err := waitLock(ctx, c.Lock) // a child of a killed parent may be about to stop
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer held.release()
	if err := stopOrphan(ctx, c.data()); err != nil {
		return err
	}
	port, err := c.start(ctx, say)
	if err != nil || ctx.Err() != nil {
		return errors.Join(err, c.stop())
	}
	say(report{Port: port})

	for {
		select {
		case <-ctx.Done():
			return c.stop()
		case <-time.After(10 * poll):
			if serverProcess(c.data()) == 0 {
				return errors.New("PostgreSQL ended by itself")
			}
		}
	}
}

// start starts PostgreSQL, downloading and initializing first where needed. On
// an error, or once ctx has ended, PostgreSQL may run or not.
func (c *child) start(ctx context.Context, say func(report)) (port int, err error) {
	guard, err := waitLock(ctx, filepath.Join(c.Cache, "lock"))
	if err != nil {
		return 0, err
	}
	if exists(c.unpacked()) {
		guard.release() // what is complete is only read
	} else {
		defer guard.release()
		// Left by somebody who was killed while downloading or unpacking.
		if err := removeAll(filepath.Join(c.Cache, "temp_*"), c.programs()); err != nil {
			return 0, fmt.Errorf("remove incomplete programs: %w", err)
		}
	}
	// A killed initdb leaves a folder that looks like a database.
	if !exists(c.initialized()) {
		if err := os.RemoveAll(c.data()); err != nil {
			return 0, fmt.Errorf("remove an incomplete database: %w", err)
		}
	}
	err = errors.Join(os.RemoveAll(c.tmp()), os.MkdirAll(c.tmp(), 0o700))
	if err != nil {
		return 0, fmt.Errorf("empty the temporary folder: %w", err)
	}
	if !c.archived() {
		say(report{Downloading: true})
	}

	for attempt := 1; ; attempt++ {
		if port = c.Port; port == 0 {
			if port, err = freePort(ctx); err != nil {
				return 0, err
			}
		}
		err = c.startOn(ctx, port)
		if err == nil || ctx.Err() != nil {
			break
		}
		// Somebody else may take a free port before PostgreSQL does.
		if c.Port != 0 || attempt == 5 || !portTaken(err) {
			return 0, err
		}
	}
	if ctx.Err() != nil {
		return 0, nil
	}
	err = errors.Join(os.WriteFile(c.unpacked(), nil, 0o600), os.WriteFile(c.initialized(), nil, 0o600))
	if err != nil {
		return 0, fmt.Errorf("note that PostgreSQL is in place: %w", err)
	}
	return port, nil
}

// startOn starts PostgreSQL on a port. When ctx ends it returns at once from a
// download, and otherwise when the start under way has come to its end.
func (c *child) startOn(ctx context.Context, port int) error {
	log, err := openLog(c.log())
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // PostgreSQL's own logger writes on
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("find the end of PostgreSQL's log: %w", err)
	}

	c.server = embedded.NewDatabase(embedded.DefaultConfig().
		Version(version).
		Port(uint32(port)). //nolint:gosec // G115: a port.
		Database(database).Username(account).Password(account).
		Locale("C").Encoding("UTF8").
		CachePath(c.Cache).
		BinariesPath(c.programs()).
		RuntimePath(filepath.Join(c.Dir, "run")).
		DataPath(c.data()).
		StartTimeout(time.Minute).
		StartParameters(c.settings()).
		Logger(log))
	done := make(chan error, 1)
	go func() { done <- c.server.Start() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		if !c.archived() {
			c.server = nil // nothing runs yet; the download ends with this process
			return nil
		}
		err = <-done
	}
	if err == nil {
		return nil
	}
	if strings.Contains(err.Error(), "unable to extract") {
		// A damaged archive is downloaded again the next time.
		err = errors.Join(err, removeAll(c.archive()))
	}
	if text := fatalLines(c.log(), before); text != "" {
		err = fmt.Errorf("%s: %w", text, err)
	}
	return err
}

// settings are PostgreSQL's settings other than its defaults.
func (c *child) settings() map[string]string {
	s := map[string]string{
		"listen_addresses":         loopback,
		"unix_socket_directories":  "", // a socket would be left in /tmp by a kill
		"logging_collector":        "on",
		"log_directory":            c.Dir,
		"log_filename":             filepath.Base(c.log()),
		"log_rotation_age":         "0",
		"log_rotation_size":        "0",
		"log_truncate_on_rotation": "off",
	}
	if !c.Crash {
		s["fsync"], s["full_page_writes"], s["synchronous_commit"] = "off", "off", "off"
	}
	return s
}

// stop stops PostgreSQL if it runs.
func (c *child) stop() error {
	if c.server == nil {
		return nil
	}
	stopped := c.server.Stop()
	// Mostly there is nothing left to do. What counts is that nothing is left
	// behind, whatever Stop thought of its work.
	if err := stopOrphan(context.Background(), c.data()); err != nil {
		return errors.Join(stopped, err)
	}
	return nil
}

// archive is a pattern for the downloaded archive of PostgreSQL.
func (c *child) archive() string {
	return filepath.Join(c.Cache, "embedded-postgres-binaries-*.txz")
}

// archived tells whether PostgreSQL needn't be downloaded.
func (c *child) archived() bool {
	found, err := filepath.Glob(c.archive())
	return exists(c.unpacked()) || err == nil && len(found) > 0
}

// removeAll removes all that fit the patterns.
func removeAll(patterns ...string) error {
	var errs []error
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, path := range found {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// freePort is a port that nobody listens on now.
func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", loopback+":0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }() // PostgreSQL finds out whether it's free
	addr, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return int(addr.Port()), nil
}

func portTaken(err error) bool {
	return strings.Contains(err.Error(), "already listening on port") ||
		strings.Contains(err.Error(), "could not create any TCP/IP sockets")
}

// fatalLines are the messages after offset in PostgreSQL's log that say why it
// didn't start.
func fatalLines(path string, offset int64) string {
	text, err := os.ReadFile(path) //nolint:gosec // G304: PostgreSQL's log.
	if err != nil || offset > int64(len(text)) {
		return ""
	}
	var found []string
	for line := range strings.Lines(string(text[offset:])) {
		if _, message, ok := strings.Cut(line, "FATAL:"); ok {
			found = append(found, strings.TrimSpace(message))
		}
	}
	return strings.Join(found, "; ")
}
