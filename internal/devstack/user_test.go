//go:build linux

package devstack_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/devstack"
)

// ordinaryUser is the folder and the credential of somebody who isn't root, to
// start processes with: the other tests are run by root in CI.
type ordinaryUser struct {
	home string
	syscall.Credential
}

func newOrdinaryUser(t *testing.T) ordinaryUser {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else; the other tests are run by an ordinary user right now")
	}
	who, err := user.Lookup("daemon")
	require.NoError(t, err)
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	require.NoError(t, err)
	u := ordinaryUser{folder(t), syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	u.give(t, u.home)
	self, err := os.Executable()
	require.NoError(t, err)
	copyFile(t, self, filepath.Join(u.home, "program"))
	return u
}

func (u ordinaryUser) give(t *testing.T, path string) {
	require.NoError(t, os.Chown(path, int(u.Uid), int(u.Gid)))
}

// become makes cmd the test program run by u.
func (u ordinaryUser) become(cmd *exec.Cmd) {
	cmd.Path = filepath.Join(u.home, "program")
	cmd.Dir = u.home
	cmd.Env = append(cmd.Env, "HOME="+u.home, "XDG_CACHE_HOME="+u.home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &u.Credential}
}

func TestOrdinaryUser(t *testing.T) {
	u := newOrdinaryUser(t)
	// Any stack has made sure that the archive is there.
	once := start(t, devstack.Options{Dir: folder(t), Once: true})
	require.NoError(t, once.Close())
	kept, err := filepath.Glob("/var/cache/auditsink/postgres-*/*.txz")
	require.NoError(t, err)
	require.NotEmpty(t, kept)
	cache := filepath.Join(u.home, "auditsink", filepath.Base(filepath.Dir(kept[0])))
	require.NoError(t, os.MkdirAll(cache, 0o755))
	u.give(t, cache)
	u.give(t, filepath.Dir(cache))
	copyFile(t, kept[0], filepath.Join(cache, filepath.Base(kept[0])))

	cmd, url, stop := holder(t, filepath.Join(u.home, "stack"), u.become)
	require.Equal(t, "1", query(t, url, "SELECT '1'"))
	require.Equal(t, u.Uid, ownerOf(t, filepath.Join(u.home, "stack/postgres/data")).Uid)
	require.NoError(t, stop.Close())
	require.NoError(t, cmd.Wait())
}

func TestKilledDuringTheDownload(t *testing.T) {
	u := newOrdinaryUser(t)
	proxy, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, proxy.Close()) }()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), holdVariable+"="+filepath.Join(u.home, "stack"), "HTTPS_PROXY=http://"+proxy.Addr().String())
	u.become(cmd)
	require.NoError(t, cmd.Start())
	download, err := proxy.Accept() // and never answer
	require.NoError(t, err)
	defer func() { require.NoError(t, download.Close()) }()
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.Eventually(t, func() bool { return len(processesIn(t, u.home)) == 0 }, 30*time.Second, 20*time.Millisecond)
}

func copyFile(t *testing.T, from, to string) {
	src, err := os.Open(from)
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(dst, src)
	require.NoError(t, err)
	require.NoError(t, dst.Close())
	require.NoError(t, os.Chmod(to, 0o755))
}
