package devstack_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"auditsink/internal/devstack"
)

const topic = "audit.test"

// holdVariable makes the test binary a program that holds a stack until it is
// killed; its value is the folder.
const holdVariable = "DEVSTACK_TEST_HOLD"

func TestMain(m *testing.M) {
	devstack.MaybeRunChild()
	if dir, ok := os.LookupEnv(holdVariable); ok {
		hold(dir)
	}
	goleak.VerifyTestMain(m)
}

func hold(dir string) {
	s, err := devstack.Start(context.Background(), devstack.Options{Dir: dir, Topic: topic})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.PostgresURL())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test closes it
	if err := s.Close(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// folder is one that the user nobody can reach, as t.TempDir isn't.
func folder(t *testing.T) string {
	dir, err := os.MkdirTemp("", "devstack-test-") //nolint:usetesting // the user nobody can't reach t.TempDir
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		require.Empty(t, processesIn(t, dir), "processes left behind")
		require.NoError(t, os.RemoveAll(dir))
	})
	return dir
}

// processesIn lists the live processes that work or have their program in dir.
func processesIn(t *testing.T, dir string) (found []int) {
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		exe, _ := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if strings.HasPrefix(cwd, dir) || strings.HasPrefix(exe, dir) {
			found = append(found, pid)
		}
	}
	return found
}

func start(t *testing.T, o devstack.Options) *devstack.Stack {
	o.Topic = topic
	o.Notice = func(line string) { t.Log(line) }
	s, err := devstack.Start(t.Context(), o)
	require.NoError(t, err)
	return s
}

// query runs a statement and returns its one value as text.
func query(t *testing.T, url, sql string) string {
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	var text string
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&text))
	return text
}

func postmaster(t *testing.T, dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "postgres/data/postmaster.pid"))
	require.NoError(t, err)
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	require.NoError(t, err)
	return pid
}

// childOf is the process that runs PostgreSQL for this one.
func childOf(t *testing.T, dir string) int {
	for _, pid := range processesIn(t, dir) {
		if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); cwd == filepath.Join(dir, "postgres") {
			return pid
		}
	}
	require.Fail(t, "no child found")
	return 0
}

func TestOnceLeavesNothing(t *testing.T) {
	dir := folder(t)
	// Settings of the shell that would lead PostgreSQL or its tools astray.
	t.Setenv("PGOPTIONS", "-c no_such_setting=1")
	t.Setenv("LC_ALL", "xx_XX.UTF-8")
	s := start(t, devstack.Options{Dir: dir, Once: true, Partitions: 3})
	require.NoError(t, os.Unsetenv("PGOPTIONS")) // lest it lead the test astray
	require.Equal(t, "off", query(t, s.PostgresURL(), "SHOW fsync"))
	require.Contains(t, query(t, s.PostgresURL(), "SHOW server_version"), "18.")
	require.Equal(t, "UTF8", query(t, s.PostgresURL(), "SHOW server_encoding"))
	require.Equal(t, dir, filepath.Dir(s.Dir()))
	select {
	case <-s.Done():
		require.Fail(t, "done while it runs")
	default:
		require.NoError(t, s.Err())
	}

	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...))
	require.NoError(t, err)
	topics, err := kadm.NewClient(client).ListTopics(t.Context(), topic)
	require.NoError(t, err)
	require.Len(t, topics[topic].Partitions, 3)
	client.Close()

	require.NoError(t, s.Close())
	left, err := filepath.Glob(filepath.Join(dir, "once-*"))
	require.NoError(t, err)
	require.Empty(t, left)
	<-s.Done()
}

func TestDataOutlivesTheStack(t *testing.T) {
	dir := folder(t)
	s := start(t, devstack.Options{Dir: dir})
	require.Equal(t, "on", query(t, s.PostgresURL(), "SHOW fsync"))
	execute(t, s.PostgresURL(), "CREATE TABLE kept AS SELECT 'still here' AS text")
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...), kgo.DefaultProduceTopic(topic))
	require.NoError(t, err)
	require.NoError(t, client.ProduceSync(t.Context(), kgo.StringRecord("still here")).FirstErr())
	before, err := kadm.NewClient(client).ListTopics(t.Context(), topic)
	require.NoError(t, err)
	client.Close()

	// A second one in the same folder is refused, and harms nothing.
	_, err = devstack.Start(t.Context(), devstack.Options{Dir: dir, Topic: topic})
	require.ErrorContains(t, err, "another `auditsink dev` uses the folder "+dir)
	require.Equal(t, "still here", query(t, s.PostgresURL(), "SELECT text FROM kept"))
	require.NoError(t, s.Close())

	// The mark of a PostgreSQL that is gone, whose number is another's now.
	mark := filepath.Join(dir, "postgres/data/postmaster.pid")
	other := exec.CommandContext(t.Context(), "sleep", "1000")
	owner := ownerOf(t, filepath.Dir(mark))
	if os.Geteuid() == 0 { // one that PostgreSQL's user could end
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &owner}
	}
	require.NoError(t, other.Start())
	defer func() {
		require.NoError(t, other.Process.Kill())
		require.ErrorContains(t, other.Wait(), "killed", "somebody else has ended it before")
	}()
	require.NoError(t, os.WriteFile(mark, fmt.Appendf(nil, "%d\n%s\n", other.Process.Pid, filepath.Dir(mark)), 0o600))
	require.NoError(t, os.Chown(mark, int(owner.Uid), int(owner.Gid)))

	s = start(t, devstack.Options{Dir: dir})
	require.Equal(t, "still here", query(t, s.PostgresURL(), "SELECT text FROM kept"))
	client, err = kgo.NewClient(kgo.SeedBrokers(s.Brokers()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	after, err := kadm.NewClient(client).ListTopics(t.Context(), topic)
	require.NoError(t, err)
	require.Equal(t, before[topic].ID, after[topic].ID)
	fetches := client.PollFetches(t.Context())
	require.NoError(t, fetches.Err())
	require.Equal(t, "still here", string(fetches.Records()[0].Value))
	client.Close()
	require.NoError(t, s.Close())
}

func ownerOf(t *testing.T, path string) syscall.Credential {
	info, err := os.Stat(path)
	require.NoError(t, err)
	owner, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	return syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
}

func execute(t *testing.T, url, sql string) {
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}

// holder starts another process that holds a stack, and waits until it does.
func holder(t *testing.T, dir string, change func(*exec.Cmd)) (cmd *exec.Cmd, url string, stop io.Closer) {
	self, err := os.Executable()
	require.NoError(t, err)
	cmd = exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), holdVariable+"="+dir)
	if change != nil {
		change(cmd)
	}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	stop, err = cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.Contains(t, lines.Text(), "postgres://")
	return cmd, lines.Text(), stop
}

func TestKilledParentLeavesNoPostgres(t *testing.T) {
	dir := folder(t)
	cmd, url, _ := holder(t, dir, nil)
	execute(t, url, "CREATE TABLE kept AS SELECT 'still here' AS text")
	require.NotEmpty(t, processesIn(t, dir))
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	// A new session needn't wait until the old PostgreSQL is gone.
	s := start(t, devstack.Options{Dir: dir})
	require.Equal(t, "still here", query(t, s.PostgresURL(), "SELECT text FROM kept"))
	require.NoError(t, s.Close())

	cmd, _, _ = holder(t, dir, nil)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.Eventually(t, func() bool { return len(processesIn(t, dir)) == 0 }, 30*time.Second, 20*time.Millisecond)
}

func TestKilledParentDuringTheFirstStart(t *testing.T) {
	dir := folder(t)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), holdVariable+"="+dir)
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(dir, "postgres/data/PG_VERSION"))
		return err == nil
	}, 30*time.Second, time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.Eventually(t, func() bool { return len(processesIn(t, dir)) == 0 }, 30*time.Second, 20*time.Millisecond)
}

func TestPostgresLeftBehindIsStopped(t *testing.T) {
	dir := folder(t)
	cmd, _, _ := holder(t, dir, nil)
	child, server := childOf(t, dir), postmaster(t, dir)
	// Both killed at once: nobody is there to stop PostgreSQL. The child is
	// stopped first lest it act in between.
	require.NoError(t, syscall.Kill(child, syscall.SIGSTOP))
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.NoError(t, syscall.Kill(child, syscall.SIGKILL))
	require.Contains(t, processesIn(t, dir), server)

	s := start(t, devstack.Options{Dir: dir})
	require.NotContains(t, processesIn(t, dir), server)
	require.Equal(t, "1", query(t, s.PostgresURL(), "SELECT '1'"))
	require.NoError(t, s.Close())
}

func TestEndOfPostgresIsNoticed(t *testing.T) {
	for name, kill := range map[string]func(t *testing.T, dir string){
		"PostgreSQL": func(t *testing.T, dir string) {
			require.NoError(t, syscall.Kill(postmaster(t, dir), syscall.SIGKILL))
		},
		"child": func(t *testing.T, dir string) { require.NoError(t, syscall.Kill(childOf(t, dir), syscall.SIGKILL)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t)
			s := start(t, devstack.Options{Dir: dir})
			kill(t, dir)
			select {
			case <-s.Done():
			case <-t.Context().Done():
			}
			require.ErrorContains(t, s.Err(), s.PostgresLog())
			require.NoError(t, s.Close())
			require.Eventually(t, func() bool { return len(processesIn(t, dir)) == 0 }, 30*time.Second, 20*time.Millisecond)
		})
	}
}

func TestInterruptedFirstStart(t *testing.T) {
	dir := folder(t)
	data := filepath.Join(dir, "postgres/data")
	for round := range 2 {
		ctx, giveUp := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() {
			_, err := devstack.Start(ctx, devstack.Options{Dir: dir, Topic: topic})
			result <- err
		}()
		if round > 0 { // else before anything has been begun
			require.Eventually(t, func() bool {
				_, err := os.Stat(filepath.Join(data, "PG_VERSION"))
				return err == nil
			}, 30*time.Second, time.Millisecond)
		}
		giveUp()
		require.ErrorIs(t, <-result, context.Canceled)
		require.Empty(t, processesIn(t, dir))
	}
	// What a killed initdb leaves looks like a database, but isn't one.
	require.NoError(t, os.Rename(filepath.Join(data, "global"), filepath.Join(data, "lost")))

	s := start(t, devstack.Options{Dir: dir})
	require.Equal(t, "1", query(t, s.PostgresURL(), "SELECT '1'"))
	require.NoError(t, s.Close())
}

func TestTakenPorts(t *testing.T) {
	dir := folder(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	_, text, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	_, err = devstack.Start(t.Context(), devstack.Options{Dir: dir, Topic: topic, PostgresPort: port})
	require.ErrorContains(t, err, fmt.Sprintf("already listening on port %d", port))
	_, err = devstack.Start(t.Context(), devstack.Options{Dir: dir, Topic: topic, KafkaPort: port})
	require.ErrorContains(t, err, strconv.Itoa(port))
}

func TestLeftTemporaryFoldersAreRemoved(t *testing.T) {
	dir := folder(t)
	used := start(t, devstack.Options{Dir: dir, Once: true})
	left := filepath.Join(dir, "once-123")
	require.NoError(t, os.MkdirAll(filepath.Join(left, "kafka"), 0o700))
	s := start(t, devstack.Options{Dir: dir, Once: true})
	require.NoDirExists(t, left)
	require.DirExists(t, used.Dir())
	require.Equal(t, "1", query(t, used.PostgresURL(), "SELECT '1'"))
	require.NoError(t, s.Close())
	require.NoError(t, used.Close())
}

func TestClosedFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("concerns root alone")
	}
	dir := folder(t)
	closed := filepath.Join(dir, "closed")
	require.NoError(t, os.Mkdir(closed, 0o700))
	_, err := devstack.Start(t.Context(), devstack.Options{Dir: filepath.Join(closed, "dev"), Topic: topic})
	require.ErrorContains(t, err, "the folder "+closed+" is closed to the user nobody")
	require.ErrorContains(t, err, "--dir")
}
