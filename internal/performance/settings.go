package performance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Settings are those of the server that advice is about. Sizes are in bytes.
type Settings struct {
	SharedBuffers, EffectiveCacheSize int64
	WorkMem, MaintenanceWorkMem       int64
	MaxWALSize                        int64
	CheckpointTimeoutSeconds          float64
	CheckpointTarget                  float64
	WALCompression                    string
	WALCompressions                   []string // that the server can do
	Autovacuum, TrackCounts           bool
	AutovacuumWorkers                 int
	WorkerSlots                       int     // how many workers there can be without a restart; 0 where there is no such limit (before Postgres 18)
	CostDelayMillis                   float64 // of autovacuum
	CostLimit                         int     // of autovacuum
	RandomPageCost, SeqPageCost       float64
	MaxConnections                    int
	ReservedConnections               int // of max_connections, for superusers and pg_use_reserved_connections
}

// serverSettings are the settings, and where the server is.
type serverSettings struct {
	Settings
	owners int  // of active lanes: those of the others may be of long ago
	here   bool // it runs on this machine
}

func readSettings(ctx context.Context, tx pgx.Tx) (*serverSettings, error) {
	all, err := readAllSettings(ctx, tx)
	if err != nil {
		return nil, err
	}
	var failed []error
	number := func(name string) float64 {
		v, err := all[name].number()
		if err != nil {
			failed = append(failed, fmt.Errorf("read the server's %s: %w", name, err))
		}
		return v
	}
	bytes := func(name string) int64 { return int64(number(name)) }
	count := func(name string) int { return int(number(name)) }
	s := &serverSettings{Settings: Settings{
		SharedBuffers: bytes("shared_buffers"), EffectiveCacheSize: bytes("effective_cache_size"), WorkMem: bytes("work_mem"),
		MaintenanceWorkMem: bytes("maintenance_work_mem"), MaxWALSize: bytes("max_wal_size"),
		CheckpointTimeoutSeconds: number("checkpoint_timeout"), CheckpointTarget: number("checkpoint_completion_target"),
		WALCompression: all["wal_compression"].value, WALCompressions: all["wal_compression"].choices,
		Autovacuum: all["autovacuum"].value == "on", TrackCounts: all["track_counts"].value == "on",
		AutovacuumWorkers: count("autovacuum_max_workers"), CostDelayMillis: number("autovacuum_vacuum_cost_delay"), CostLimit: count("autovacuum_vacuum_cost_limit"),
		RandomPageCost: number("random_page_cost"), SeqPageCost: number("seq_page_cost"),
		MaxConnections: count("max_connections"), ReservedConnections: count("superuser_reserved_connections"),
	}}
	if _, ok := all["autovacuum_worker_slots"]; ok { // Postgres 18
		s.WorkerSlots = count("autovacuum_worker_slots")
	}
	if _, ok := all["reserved_connections"]; ok { // Postgres 16
		s.ReservedConnections += count("reserved_connections")
	}
	if s.CostDelayMillis < 0 {
		s.CostDelayMillis = number("vacuum_cost_delay")
	}
	if s.CostLimit < 0 {
		s.CostLimit = count("vacuum_cost_limit")
	}
	var pid int
	if err := tx.QueryRow(ctx, `SELECT pg_backend_pid(), (SELECT count(DISTINCT owner) FROM audit_lane WHERE state = 'active')`).Scan(&pid, &s.owners); err != nil {
		failed = append(failed, fmt.Errorf("look for the server's process: %w", err))
	}
	s.here = nearby(tx.Conn().Config().Host) && isPostgres(pid)
	return s, errors.Join(failed...)
}

// rawSetting is a row of pg_settings.
type rawSetting struct {
	value, unit string
	choices     []string
}

func readAllSettings(ctx context.Context, tx pgx.Tx) (map[string]rawSetting, error) {
	rows, err := tx.Query(ctx, `SELECT name, coalesce(setting, ''), coalesce(unit, ''), coalesce(enumvals, '{}') FROM pg_settings`)
	if err != nil {
		return nil, fmt.Errorf("read the server's settings: %w", err)
	}
	all := map[string]rawSetting{}
	var name string
	var s rawSetting
	if _, err := pgx.ForEachRow(rows, []any{&name, &s.value, &s.unit, &s.choices}, func() error {
		all[name] = s
		s.choices = nil
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read the server's settings: %w", err)
	}
	return all, nil
}

// number is a setting in bytes, seconds (milliseconds where that is its unit), or whatever has no unit.
func (s rawSetting) number() (float64, error) {
	v, err := strconv.ParseFloat(s.value, 64)
	if err != nil {
		return 0, err
	}
	if v < 0 { // off, or another's value
		return v, nil
	}
	switch s.unit {
	case "", "ms", "s":
		return v, nil
	}
	for _, u := range []struct {
		suffix string
		bytes  float64
	}{{"kB", 1 << 10}, {"MB", 1 << 20}, {"GB", 1 << 30}, {"B", 1}} {
		if times, ok := strings.CutSuffix(s.unit, u.suffix); ok {
			n := 1.0
			if times != "" { // pages, as in 8kB
				if n, err = strconv.ParseFloat(times, 64); err != nil {
					break
				}
			}
			return v * n * u.bytes, nil
		}
	}
	return 0, fmt.Errorf("the unit %q is not known", s.unit)
}

// nearby tells whether the address that we connect to is this machine's own. What answers there may still be elsewhere (a pooler, a tunnel).
func nearby(host string) bool {
	ip := net.ParseIP(host)
	return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" || ip != nil && ip.IsLoopback()
}

// isPostgres tells whether this machine has a process of that number which is a server's. It is how one knows that the server isn't elsewhere.
func isPostgres(pid int) bool {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && strings.HasPrefix(string(name), "postgres")
}

// Machine is what the database's machine has.
type Machine struct {
	MemoryBytes int64 // 0: not known
	Cores       int
}

// thisMachine is the one that this process runs on.
func thisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU()}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m // another system than Linux
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "MemTotal:" {
			if kB, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				m.MemoryBytes = kB << 10
			}
		}
	}
	return m
}
