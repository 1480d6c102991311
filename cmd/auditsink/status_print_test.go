package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"auditsink/internal/fleet"
	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/partitions"
	"auditsink/sink"
)

// aStatus is one with everything in it, most of it bad.
func aStatus() *status {
	at := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	position := int64(7)
	s := &status{At: at, Group: "g"}
	s.Leader = statusLeader{Source: fromPostgres, Holder: "host-a/1/ABCDEFGH", Since: at.Add(-50 * time.Hour)}
	s.Replicas.Source = fromRedis
	s.Replicas.Items = []fleet.Figures{
		{
			Instance: "host-a/1/ABCDEFGH", Owner: "host-a/1", Version: "v1.2.3", Started: at.Add(-90 * time.Second), Ready: true, Leader: true, LanesOwned: 1, LagRecords: 12345, LagSeconds: 75.2,
			RecordsPerSecond: 1234.56, RowsPerSecond: 0.04, FlushP95: 0.0123, BufferedBytes: 3 << 20, MemoryBytes: 5 << 29, Health: metrics.Healthy, Components: map[string]metrics.Status{"pool": metrics.Healthy},
			Lanes: []fleet.Lane{{Topic: "events", Partition: 0, Position: &position, Lag: &fleet.Lag{Records: 12345, Seconds: 75.2}}},
		},
		{
			Instance: strings.Repeat("long-", 30) + "host/2/ABCDEFGH", Owner: "host-b/2", Version: "v1.2.3", Started: at.Add(-26 * time.Hour), NotReady: "lane events/1: gone\nand more", LanesOwned: 1, LanesHalted: 1,
			Alerts: []string{"lane_halted", "of_another_version"}, Health: metrics.Critical, Components: map[string]metrics.Status{"kafka": metrics.Critical},
			Lanes: []fleet.Lane{{Topic: "events", Partition: 1, Halted: "its topic is gone"}},
		},
	}
	s.Lanes.Source = fromPostgres
	s.Lanes.Items = []statusLane{
		{Lane: fleet.Lane{Topic: "events", Partition: 0, Position: &position}, Group: "g", State: laneActive, Owner: "host-a/1"},
		{Lane: fleet.Lane{Topic: "events", Partition: 1, Position: &position}, Group: "g", State: laneActive, Owner: "host-b/2"},
		{Lane: fleet.Lane{Topic: "events", Partition: 2, Position: &position}, Group: "g", State: laneActive, Owner: "host-c/3"},
		{Lane: fleet.Lane{Topic: strings.Repeat("wide", 60), Partition: 12, Position: &position}, Group: "another", State: laneActive, Owner: "host-d/4"},
	}
	s.Partitions = statusPartitions{
		Source: fromPostgres, Count: 7, ReadyUntil: at.Add(1000 * time.Hour), WaysOut: 2,
		NextDrop: &partitions.Fate{Bounds: partitions.Bounds{Name: "audit_log_2019_01"}, Due: at.Add(24 * time.Hour)},
	}
	s.Quarantine = statusQuarantine{Source: fromPostgres, At: at.Add(-12 * time.Second), QuarantineTally: sink.QuarantineTally{
		States: map[string]int64{"new": 30, "redriven": 1}, Reasons: map[string]int64{"empty": 3, "too_deep": 20, "invalid_json": 7},
	}}
	s.Gaps = statusGaps{Source: fromPostgres, Items: []sink.GapTally{{Kind: "retention", Gaps: 1, Offsets: 5, Latest: at}}, Error: "no more"}
	return s
}

func page(t *testing.T, s *status) string {
	t.Helper()
	s.own()
	s.judge(partitions.Month)
	var b strings.Builder
	require.NoError(t, s.print(&b))
	return b.String()
}

// TestPrintStatus: the whole page, as people see it.
func TestPrintStatus(t *testing.T) {
	text := page(t, aStatus())
	require.Equal(t, `auditsink at 2026-11-25T03:00:00Z, consumer group g: CRITICAL
  critical: LONG: component kafka is critical
  critical: lane events/1 has halted: its topic is gone (auditsink lanes accept, once the cause is mended)
  critical: alert lane_halted (LONG): `, strings.ReplaceAll(text[:strings.Index(text, "lane_halted (")+len("lane_halted (")+len(longName)+3], longName, "LONG"))
	require.Contains(t, text, "  warning: alert of_another_version ("+longName+"): this version of auditsink doesn't know it: see the log of that replica\n")
	require.Contains(t, text, "  warning: "+longName+" is not ready: lane events/1: gone;and more\n")
	require.Contains(t, text, "  warning: lane events/2 is nobody's: its records wait\n")
	require.Contains(t, text, "  warning: gaps: no more\n")
	require.Equal(t, `
replicas: 2, 1 ready; lanes: 2 owned, 1 halted; lag: 12345 records, 1m15s; 1234.6 records/s, 0.0 rows/s
leader: host-a/1/ABCDEFGH since 2026-11-23T01:00:00Z (2d2h)

REPLICA                                   VERSION  UP     READY  LEADS  LANES  HALTED  LAG    BEHIND  RECORDS/S  ROWS/S  FLUSH P95  BUFFERED  MEMORY  HEALTH    ALERTS
host-a/1/ABCDEFGH                         v1.2.3   1m30s  yes    yes    1      0       12345  1m15s   1234.6     0.0     12ms       3.0 MB    2.5 GB  healthy   -
long-long-long-long…long-host/2/ABCDEFGH  v1.2.3   26h0m  no     no     1      1       0      0.0s    0.0        0.0     -          0 B       0 B     critical  lane_halted,of_another_version

LANE                                         STATE    POSITION  LAG    BEHIND  OWNER
events/0                                     active   7         12345  1m15s   host-a/1
events/1                                     halted   7         -      -       host-b/2
events/2                                     unowned  7         -      -       NOBODY (last: host-c/3)
widewidewidewidewid…widewidewidewidewide/12  active   7         -      -       host-d/4 (consumer group another)

partitions  7, ready until 2027-01-05T19:00:00Z; 2 on their way out; next to go: audit_log_2019_01, 2026-11-26 (not removed while AUDITSINK_RETENTION_ENFORCE is false)
quarantine  30 new, 1 redriven; new: too_deep 20, invalid_json 7, empty 3; 12s ago
gaps        retention 1 (5 offsets, the last at 2026-11-25T03:00:00Z); no more
alerts      lane_halted, of_another_version
`, text[strings.Index(text, "\n\n")+1:])
}

var longName = strings.Repeat("long-", 30) + "host/2/ABCDEFGH"

// TestPrintStatusWithout: what isn't known isn't invented.
func TestPrintStatusWithout(t *testing.T) {
	s := &status{At: time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC), Group: "g"}
	for _, why := range []*string{&s.Leader.Error, &s.Replicas.Error, &s.Lanes.Error, &s.Partitions.Error, &s.Quarantine.Error, &s.Gaps.Error} {
		*why = "it is away"
	}
	require.True(t, s.nothing())
	text := page(t, s)
	require.Equal(t, metrics.Warning, s.Health)
	require.Contains(t, text, "\nleader: unknown: it is away\n\nreplicas: it is away\n\nlanes: it is away\n\n"+
		"partitions  it is away\nquarantine  it is away\ngaps        it is away\nalerts      unknown: no replica could be asked\n")
}

// TestHostileStatus: whatever Redis holds, the page has the lines and columns that it should, and moves no cursor.
func TestHostileStatus(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"\x1b[2J", "a\tb", "a\nb", "\r", "\u202e", "\x00", "日本", strings.Repeat("x", 1000)}))
		s := aStatus()
		s.Group = text.Draw(rt, "group")
		f := &s.Replicas.Items[0]
		f.Instance, f.Version, f.NotReady, f.Owner = text.Draw(rt, "instance"), text.Draw(rt, "version"), text.Draw(rt, "not ready"), text.Draw(rt, "owner")
		f.Ready, f.Alerts, f.Health = false, []string{text.Draw(rt, "alert")}, metrics.Status(text.Draw(rt, "health"))
		f.Components = map[string]metrics.Status{text.Draw(rt, "component"): metrics.Status(text.Draw(rt, "status"))}
		f.Lanes[0].Topic, f.Lanes[0].Halted = text.Draw(rt, "topic"), text.Draw(rt, "halted")
		f.FlushP95, f.LagSeconds, f.RowsPerSecond = rapid.Float64().Draw(rt, "p95"), rapid.Float64().Draw(rt, "lag"), rapid.Float64().Draw(rt, "rate")
		f.BufferedBytes, f.Started = rapid.Int64().Draw(rt, "bytes"), time.Unix(rapid.Int64().Draw(rt, "started"), 0)
		s.Notes = []string{text.Draw(rt, "note")}
		s.Quarantine.Reasons, s.Gaps.Items[0].Kind = map[string]int64{text.Draw(rt, "reason"): 1}, text.Draw(rt, "kind")
		for line := range strings.Lines(page(t, s)) {
			for _, r := range strings.TrimSuffix(line, "\n") {
				require.True(t, unicode.IsPrint(r), "%q in %q", r, line)
			}
		}
	})
}

func TestRedraw(t *testing.T) {
	require.Equal(t, "\x1b[Hab\x1b[K\r\nc\x1b[K\x1b[J", redraw("ab\nc\n", 10, 5))
	require.Equal(t, "\x1b[Habc…\x1b[K\x1b[J", redraw("abcdef\n", 5, 5), "a full line would wrap")
	long := redraw(strings.Repeat("x\n", 30), 200, 4)
	require.Equal(t, 3, strings.Count(long, "\r\n"))
	require.Contains(t, long, "… 27 more lines")
	redraw("ab\n", 1, 1)
}

// TestWatchOnTerminal: it draws in place, on a screen of its own, which it leaves at the end.
func TestWatchOnTerminal(t *testing.T) {
	t.Parallel()
	s := settings{"POSTGRES_URL": testkit.Postgres(t, 18), "HTTP_ADDR": "127.0.0.1:1"}
	succeed(t, s, "migrate", "up")
	master, terminal := pseudoTerminal(t)
	var screen output
	read := make(chan struct{})
	go func() {
		defer close(read)
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			_, _ = screen.Write(buffer[:n])
			if err != nil {
				return // the other end is closed
			}
		}
	}()
	p := startTo(t, s, terminal, "status", "--watch", "--interval", "100ms")
	eventually(t, "three looks", func() bool { return strings.Count(screen.String(), goHome+"auditsink at ") >= 3 })
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.Zero(t, p.wait(t), p.errs.String())
	require.NoError(t, terminal.Close())
	<-read
	require.NoError(t, master.Close())
	got := screen.String()
	require.True(t, strings.HasPrefix(got, enterScreen), "%q", got)
	require.True(t, strings.HasSuffix(got, leaveScreen), "%q", got[max(0, len(got)-200):])
	for _, look := range strings.Split(strings.TrimPrefix(strings.TrimSuffix(got, leaveScreen), enterScreen), goHome)[1:] {
		lines := strings.Split(look, "\r\n")
		require.LessOrEqual(t, len(lines), 12)
		for _, line := range lines {
			require.LessOrEqual(t, len([]rune(strings.NewReplacer(clearLine, "", clearBelow, "").Replace(line))), 60)
		}
	}
}

// pseudoTerminal is a terminal of 60 by 12, and its other end.
func pseudoTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	control := func(request uintptr, argument unsafe.Pointer) {
		t.Helper()
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(argument))
		require.Zero(t, errno)
	}
	number, unlocked, size := uint32(0), int32(0), [4]uint16{12, 60}
	control(syscall.TIOCGPTN, unsafe.Pointer(&number))
	control(syscall.TIOCSPTLCK, unsafe.Pointer(&unlocked))
	control(syscall.TIOCSWINSZ, unsafe.Pointer(&size))
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	return master, terminal
}
