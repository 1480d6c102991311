// Package performance tells how fast auditsink is, and keeps it so: a report of what a worker and its database did in a window of time, advice on the
// server's settings, and rules by which caches are cleared and partitions analyzed and vacuumed. Whatever it reads, it resets nothing: figures of a window are
// the difference of two looks.
package performance

import "time"

// Report is what one worker did from From to To, and how its database was. Durations are in seconds, sizes in bytes.
type Report struct {
	Worker        string         `json:"worker"`
	From          time.Time      `json:"from"`
	To            time.Time      `json:"to"`
	Seconds       float64        `json:"seconds"`
	Ingest        Ingest         `json:"ingest"`
	Flush         Flush          `json:"flush"`
	Pool          *Pool          `json:"pool"`  // for ingest
	Reads         *Pool          `json:"reads"` // the pool for reads
	Cache         *Cache         `json:"cache"` // nil without Redis
	Process       Process        `json:"process"`
	Database      Database       `json:"database"`
	Advice        []Advice       `json:"advice"`
	AdviceUnknown []string       `json:"advice_unknown"` // what isn't known of the server, and so not advised on
	Optimizations []Optimization `json:"optimizations"`  // the latest first, by all workers
}

// Ingest is what came from Kafka and went into the database.
type Ingest struct {
	Records          float64  `json:"records"`
	RecordsPerSecond float64  `json:"records_per_second"`
	Rows             float64  `json:"rows"`
	RowsPerSecond    float64  `json:"rows_per_second"`
	Quarantined      float64  `json:"quarantined"`
	EndToEnd         Quantile `json:"end_to_end"`      // from a record's timestamp to the commit of its batch
	LagRecords       float64  `json:"lag_records"`     // of all lanes, at the end of the window
	LagRecordsMax    float64  `json:"lag_records_max"` // of one lane
	LagSecondsMax    float64  `json:"lag_seconds_max"`
	Lanes            float64  `json:"lanes"`
	BufferedBytes    float64  `json:"buffered_bytes"`
}

// Quantile is how durations are distributed, in seconds; all 0 where there were none.
type Quantile struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_seconds"`
	P95   float64 `json:"p95_seconds"`
	P99   float64 `json:"p99_seconds"`
}

// Flush is how batches were stored.
type Flush struct {
	Count    uint64             `json:"count"`
	MeanRows float64            `json:"mean_rows"`
	Duration Quantile           `json:"duration"`
	Retries  map[string]float64 `json:"retries"` // by class of error
	Fenced   float64            `json:"fenced"`
}

// Pool is a pool of database connections: as it is at the end of the window, and what was waited for it within.
type Pool struct {
	Max                float64 `json:"max"`
	Total              float64 `json:"total"`
	Active             float64 `json:"active"`
	Idle               float64 `json:"idle"`
	Waiting            float64 `json:"waiting"`
	Acquires           uint64  `json:"acquires"`
	AcquireMeanSeconds float64 `json:"acquire_mean_seconds"`
	AcquireP95Seconds  float64 `json:"acquire_p95_seconds"`
	Failures           float64 `json:"failures"` // acquires that got none
}

// Cache is how the cache of queries paid. A get is a look that Redis answered; what was stored, and what waited for another's look, is none.
type Cache struct {
	Gets   float64  `json:"gets"`
	Hits   float64  `json:"hits"`
	Ratio  *float64 `json:"hit_ratio"` // hits of gets; nil without gets
	Errors float64  `json:"errors"`
	Shared float64  `json:"shared"` // with a look under way
}

// Process is the worker's own process: memory and goroutines at the end of the window, CPU within.
type Process struct {
	ResidentBytes float64 `json:"resident_bytes"`
	HeapBytes     float64 `json:"heap_bytes"`
	Goroutines    float64 `json:"goroutines"`
	CPUSeconds    float64 `json:"cpu_seconds"`
	GCCPUSeconds  float64 `json:"gc_cpu_seconds"` // as far as collections have ended
}

// Database is what its own statistics tell. A part that can't be read is nil, and Unread says why.
type Database struct {
	Version     string       `json:"version,omitempty"`
	Statements  *Statements  `json:"statements"`
	Indexes     *Indexes     `json:"indexes"`
	Tables      *Tables      `json:"tables"`
	WAL         *WAL         `json:"wal"`
	Checkpoints *Checkpoints `json:"checkpoints"`
	Activity    *Activity    `json:"activity"`
	Partitions  *Partitions  `json:"partitions"`
	Unread      []Unread     `json:"unread"`
}

// Unread is a part of the report that can't be read, and why not.
type Unread struct {
	Part string `json:"part"`
	Why  string `json:"why"`
}

// Statements are those that took the most time in the database, by pg_stat_statements, of all who use it.
type Statements struct {
	Since time.Time   `json:"since,omitzero"` // from when they are counted: the window's start, where there was a look then
	Top   []Statement `json:"top"`
	Slow  int         `json:"slow"` // how many of all took as long as SLOW_QUERY or longer on average
}

// Statement is one of them. Its text is Postgres's normalized one, without comments and anything that could be a value.
type Statement struct {
	ID           string  `json:"id"` // queryid, as text: it has more digits than JSON numbers keep
	Text         string  `json:"text"`
	Calls        int64   `json:"calls"`
	Rows         int64   `json:"rows"`
	TotalSeconds float64 `json:"total_seconds"`
	MeanSeconds  float64 `json:"mean_seconds"`
	Slow         bool    `json:"slow"`
}

// Indexes are those of audit_log, each summed over the partitions.
type Indexes struct {
	Since   time.Time    `json:"since,omitzero"`       // from when Scans are counted
	Stats   time.Time    `json:"stats_since,omitzero"` // from when ScansEver are: the statistics were reset then, or have run since
	All     []Index      `json:"all"`
	Unused  []string     `json:"unused"`  // not scanned since Stats, and not needed to keep anything unique
	Missing []SeqScanned `json:"missing"` // big partitions that are read as a whole, again and again: an index may be missing
	Invalid []string     `json:"invalid"` // of which at least one partition's can't be used
}

// Index is one index of audit_log.
type Index struct {
	Name       string `json:"name"` // of the parent index, or of a partition's own that has none
	Partitions int    `json:"partitions"`
	Scans      int64  `json:"scans"`
	ScansEver  int64  `json:"scans_ever"`
	Bytes      int64  `json:"bytes"`
	Unique     bool   `json:"unique"`
}

// SeqScanned is a partition that is read as a whole.
type SeqScanned struct {
	Partition string `json:"partition"`
	Scans     int64  `json:"scans"` // of all its rows: RowsRead over Rows, less those that built its indexes
	RowsRead  int64  `json:"rows_read"`
	Rows      int64  `json:"rows"` // that it has or had, by estimate
}

// Tables are the heaps of the partitions.
type Tables struct {
	Since    time.Time   `json:"since,omitzero"` // from when blocks are counted
	Hits     int64       `json:"blocks_hit"`     // found in shared_buffers
	Reads    int64       `json:"blocks_read"`    // asked of the system
	HitRatio *float64    `json:"hit_ratio"`      // nil where none were needed
	LiveRows int64       `json:"live_rows"`      // by estimate, as are the dead
	DeadRows int64       `json:"dead_rows"`
	Dead     []Partition `json:"dead"` // the partitions with dead rows, most first
}

// Partition is what the statistics say of the rows of one.
type Partition struct {
	Name     string    `json:"name"`
	Live     int64     `json:"live_rows"`
	Dead     int64     `json:"dead_rows"`
	Modified int64     `json:"modified_rows"` // since the last ANALYZE
	Analyzed time.Time `json:"analyzed,omitzero"`
	Vacuumed time.Time `json:"vacuumed,omitzero"`
}

// WAL is what the whole server wrote.
type WAL struct {
	Since          time.Time `json:"since,omitzero"`
	Bytes          int64     `json:"bytes"`
	BytesPerSecond float64   `json:"bytes_per_second"`
	Records        int64     `json:"records"`
	FullPageImages int64     `json:"full_page_images"`
	BuffersFull    int64     `json:"buffers_full"` // writes for want of wal_buffers
}

// Checkpoints are those of the whole server.
type Checkpoints struct {
	Since          time.Time `json:"since,omitzero"`
	Timed          int64     `json:"timed"`
	Requested      int64     `json:"requested"` // before their time, for want of max_wal_size or since somebody asked
	WriteSeconds   float64   `json:"write_seconds"`
	SyncSeconds    float64   `json:"sync_seconds"`
	BuffersWritten int64     `json:"buffers_written"`
}

// Activity is what goes on in the database.
type Activity struct {
	Since       time.Time `json:"since,omitzero"`
	Connections int       `json:"connections"`       // of clients, to the whole server
	Others      int       `json:"other_connections"` // of these, not auditsink's
	Commits     int64     `json:"commits"`
	Rollbacks   int64     `json:"rollbacks"`
	TempFiles   int64     `json:"temp_files"`
	TempBytes   int64     `json:"temp_bytes"`
	Deadlocks   int64     `json:"deadlocks"`
	Bytes       int64     `json:"database_bytes"`
}

// Partitions is the state of the table partitions.
type Partitions struct {
	Count         int       `json:"count"`
	Detached      int       `json:"detached"` // and not dropped yet
	Detaching     int       `json:"detaching"`
	ReadyUntil    time.Time `json:"ready_until"`
	TableBytes    int64     `json:"table_bytes"` // without indexes
	IndexBytes    int64     `json:"index_bytes"`
	DetachedBytes int64     `json:"detached_bytes"` // of those detached, in all
	Biggest       string    `json:"biggest,omitempty"`
	BiggestBytes  int64     `json:"biggest_bytes"`
}

// Optimization is one thing that was done by itself, as in audit_optimization.
type Optimization struct {
	Rule    string         `json:"rule"`
	Target  string         `json:"target"`
	Reason  string         `json:"reason"`
	Figures map[string]any `json:"figures,omitempty"`
	State   string         `json:"state"`
	Detail  string         `json:"detail,omitempty"`
	By      string         `json:"by"`
	Begun   time.Time      `json:"begun"`
	Ended   time.Time      `json:"ended,omitzero"`
}
