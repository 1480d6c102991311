package devstack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// stopDeadline is how long a child may take to stop PostgreSQL. PostgreSQL's
// own tool gives up after 60 s.
const stopDeadline = 75 * time.Second

// postgres is the child that runs PostgreSQL, as its parent sees it.
type postgres struct {
	data    string
	port    int
	process *os.Process
	stdin   io.Closer // closing it asks the child to stop

	events chan report // what the child says before it's ready; never blocks its writer
	exited chan struct{}
	// Set before exited is closed: how the child ended, and its own account.
	status error
	failed string
}

// startPostgres starts the child and waits until PostgreSQL takes connections.
func startPostgres(ctx context.Context, f *folder, o Options) (*postgres, error) {
	p := &postgres{data: f.postgresData(), events: make(chan report, maxReports), exited: make(chan struct{})}
	if err := p.launch(ctx, f, o); err != nil {
		return nil, err
	}
	for {
		select {
		case r := <-p.events:
			if r.Port != 0 {
				p.port = r.Port
				return p, nil
			}
			o.Notice(fmt.Sprintf("downloading PostgreSQL %s (about 15 MB, only this once) into %s", version, f.cache))
		case <-p.exited:
			return nil, errors.Join(fmt.Errorf("start PostgreSQL: %w (logs: %s and %s)", p.reason(), f.postgresLog(), f.childLog()), p.stop())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("start PostgreSQL: %w", ctx.Err()), p.stop())
		}
	}
}

// launch starts the child.
func (p *postgres) launch(ctx context.Context, f *folder, o Options) (err error) {
	program, err := f.program()
	if err != nil {
		return err
	}
	spec, err := json.Marshal(childSpec{
		Dir:   f.postgres(),
		Lock:  f.postgresLock(),
		Cache: f.cache,
		Port:  o.PostgresPort,
		Crash: !o.Once,
	})
	if err != nil {
		return fmt.Errorf("describe PostgreSQL to the child: %w", err)
	}
	log, err := openLog(f.childLog())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	out, childOut, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer func() { err = errors.Join(err, childOut.Close()) }()

	// The end of ctx isn't the child's: what still runs then needs PostgreSQL
	// to finish its work.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program) //nolint:gosec // G204: this program itself.
	cmd.Env = f.environment(string(spec))
	cmd.Dir = f.postgres()
	cmd.Stdout, cmd.Stderr = childOut, log
	cmd.SysProcAttr = childAttributes(f.owner)
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return errors.Join(fmt.Errorf("make a pipe: %w", err), out.Close())
	}

	started, silent := make(chan error), make(chan struct{})
	go func() {
		// Linux sends the child its signal when this thread ends, not when
		// the process does (prctl(2), PR_SET_PDEATHSIG): so keep the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
			<-silent
			p.status = err
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return errors.Join(fmt.Errorf("start the child that runs PostgreSQL: %w", err), out.Close())
	}
	p.process = cmd.Process
	go func() {
		defer close(silent)
		p.read(out)
	}()
	return nil
}

// read takes what the child says, until its end.
func (p *postgres) read(out io.ReadCloser) {
	defer func() { _ = out.Close() }() // only read from
	lines := json.NewDecoder(bufio.NewReader(out))
	for {
		var r report
		if err := lines.Decode(&r); err != nil {
			return // the child has ended
		}
		if r.Failed != "" {
			p.failed = r.Failed
		} else {
			p.events <- r
		}
	}
}

// reason says why the child ended; only after exited.
func (p *postgres) reason() error {
	switch {
	case p.failed != "":
		return errors.New(p.failed)
	case p.status != nil:
		return fmt.Errorf("the child that runs it: %w", p.status)
	default:
		return errors.New("the child that runs it was told to stop")
	}
}

// stop asks the child to stop PostgreSQL and waits until it has. Whatever
// became of the child, no PostgreSQL is left behind.
func (p *postgres) stop() error {
	_ = p.stdin.Close() // fails only where the child has ended
	var hung error
	select {
	case <-p.exited:
	case <-time.After(stopDeadline):
		hung = fmt.Errorf("stop PostgreSQL: the child that runs it took longer than %s and was killed", stopDeadline)
		_ = p.process.Kill() // fails only where the child has ended
		<-p.exited
	}
	return errors.Join(hung, stopOrphan(context.Background(), p.data))
}

func (f *folder) childLog() string { return filepath.Join(f.dir, "child.log") }
