//! Python, and kernel interfaces that programs rely on, reached through Python.

use super::{BASH, PYTHON3, Program};

/// Python and its standard library.
pub const PYTHON: &[Program] = &[
    python(
        "threads",
        "import threading\nr=[]\nt=[threading.Thread(target=r.append,args=(i,)) for i in range(20)]\n[x.start() for x in t];[x.join() for x in t]\nprint(len(r))",
        "20",
    ),
    python(
        "multiprocessing pool",
        "import multiprocessing as m\nif __name__=='__main__':\n p=m.Pool(2);print(sum(p.map(abs,range(-9,0))));p.close();p.join()",
        "45",
    ),
    python(
        "multiprocessing by spawn and by fork server",
        "import multiprocessing as m\nif __name__=='__main__':\n for k in ('spawn','forkserver'):\n  c=m.get_context(k);q=c.SimpleQueue();p=c.Process(target=print,args=('child',));p.start();p.join()\n print('joined',p.exitcode)",
        "joined 0",
    ),
    python(
        "shared memory of processes",
        "from multiprocessing import shared_memory as s\na=s.SharedMemory(create=True,size=64);a.buf[0]=7;b=s.SharedMemory(a.name);print(b.buf[0]);b.close();a.close();a.unlink()",
        "7",
    ),
    python(
        "process executor",
        "import concurrent.futures as f\nif __name__=='__main__':\n with f.ProcessPoolExecutor(2) as e: print(list(e.map(abs,[-1,-2])))",
        "[1, 2]",
    ),
    python(
        "sqlite with a write-ahead log",
        "import sqlite3\nc=sqlite3.connect('d.db');c.execute('pragma journal_mode=wal');c.execute('create table t(x)');c.executemany('insert into t values(?)',[(i,) for i in range(999)]);c.commit();print(c.execute('select count(*) from t').fetchone()[0])",
        "999",
    ),
    Program {
        name: "python: a virtual environment",
        tools: &["python3"],
        runner: BASH,
        script: "/usr/bin/python3 -m venv --without-pip v && v/bin/python -c 'import sys;print(sys.prefix!=sys.base_prefix)'",
        says: "True",
    },
    python(
        "subprocess",
        "import subprocess as s\nprint(s.run(['tr','a-z','A-Z'],input='up',text=True,capture_output=True).stdout)",
        "UP",
    ),
    python(
        "asyncio server on loopback",
        "import asyncio\nasync def h(r,w):\n w.write(await r.readline());await w.drain();w.close()\nasync def m():\n s=await asyncio.start_server(h,'127.0.0.1',0);r,w=await asyncio.open_connection(*s.sockets[0].getsockname());w.write(b'echoed\\n');print((await r.readline()).decode());w.close()\nasyncio.run(m())",
        "echoed",
    ),
    python(
        "asyncio subprocess",
        "import asyncio\nasync def m():\n p=await asyncio.create_subprocess_exec('echo','child',stdout=-1);print((await p.communicate())[0].decode())\nasyncio.run(m())",
        "child",
    ),
    python(
        "pty module",
        "import pty,os\np,f=pty.fork()\nif p==0: os.execlp('echo','echo','in a terminal')\nprint(os.read(f,99).decode().strip())",
        "in a terminal",
    ),
    python(
        "ctypes calls back",
        "import ctypes\nT=ctypes.CFUNCTYPE(ctypes.c_int,ctypes.c_int)\nprint(T(lambda x:x*2)(21))",
        "42",
    ),
    python(
        "ssl context with the host's certificates",
        "import ssl\nprint('loaded' if ssl.create_default_context().cert_store_stats()['x509_ca']>0 else 'none')",
        "loaded",
    ),
    python(
        "tempfile and shutil",
        "import tempfile,shutil,os\nd=tempfile.mkdtemp();open(d+'/f','w').write('x');shutil.copytree(d,'copy');shutil.rmtree(d);print(os.listdir('copy'))",
        "['f']",
    ),
    python(
        "resolving localhost",
        "import socket\nprint(socket.gethostbyname('localhost'))",
        "127.0.0.1",
    ),
];

/// Interfaces of the kernel.
pub const KERNEL: &[Program] = &[
    python(
        "unix sockets by path and by abstract name",
        "import socket,os\nfor n in ('s','\\0abstract'):\n a=socket.socket(1);a.bind(n);a.listen();b=socket.socket(1);b.connect(n);c,_=a.accept();b.send(b'hello');print(c.recv(9).decode())",
        "hello",
    ),
    python(
        "descriptors over a socket pair",
        "import socket,os\na,b=socket.socketpair();r,w=os.pipe();socket.send_fds(a,[b'x'],[w]);_,f,_,_=socket.recv_fds(b,9,1);os.write(f[0],b'passed');print(os.read(r,9).decode())",
        "passed",
    ),
    python(
        "IPv6 and UDP on loopback",
        "import socket as s\nfor f,h in((s.AF_INET6,'::1'),(s.AF_INET,'127.0.0.1')):\n a=s.socket(f,s.SOCK_DGRAM);a.bind((h,0));b=s.socket(f,s.SOCK_DGRAM);b.sendto(b'datagram',a.getsockname()[:2]);a.settimeout(3);print(a.recv(99).decode())",
        "datagram",
    ),
    python(
        "inotify",
        "import ctypes,os\nl=ctypes.CDLL(None);f=l.inotify_init1(0);assert l.inotify_add_watch(f,b'.',0x100)>=0;open('new','w');print(os.read(f,99)[16:].rstrip(b'\\0').decode())",
        "new",
    ),
    python(
        "memory that is written and executed",
        "import ctypes,mmap\nm=mmap.mmap(-1,4096,prot=7);m.write(b'\\xb8\\x2a\\0\\0\\0\\xc3');f=ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)));print(f())",
        "42",
    ),
    python(
        "memory that becomes executable later",
        "import ctypes,mmap\nl=ctypes.CDLL(None);m=mmap.mmap(-1,4096);m.write(b'\\xb8\\x2a\\0\\0\\0\\xc3');a=ctypes.addressof(ctypes.c_char.from_buffer(m));assert l.mprotect(ctypes.c_void_p(a),4096,5)==0;print(ctypes.CFUNCTYPE(ctypes.c_int)(a)())",
        "42",
    ),
    python(
        "shared file mappings",
        "import mmap\nopen('m','wb').write(b'\\0'*4096)\nf=open('m','r+b');a=mmap.mmap(f.fileno(),4096);b=mmap.mmap(f.fileno(),4096);a[0:6]=b'shared';print(b[0:6].decode())",
        "shared",
    ),
    python(
        "memfd, sealed and executed",
        "import os,fcntl,subprocess\nf=os.memfd_create('x',os.MFD_ALLOW_SEALING);os.write(f,open('/bin/echo','rb').read());fcntl.fcntl(f,1033,15);print(subprocess.run(['/proc/self/fd/%d'%f,'from memory'],pass_fds=[f],capture_output=True,text=True).stdout)",
        "from memory",
    ),
    python(
        "POSIX shared memory and semaphores",
        "import _multiprocessing as m,multiprocessing as p\ns=p.Semaphore(1);s.acquire();s.release();import _posixshmem as x,os;f=x.shm_open('/e2e',os.O_CREAT|os.O_RDWR,mode=0o600);x.shm_unlink('/e2e');print('made')",
        "made",
    ),
    python(
        "System V shared memory and semaphores",
        "import ctypes\nl=ctypes.CDLL(None);s=l.shmget(0,4096,0o1600);q=l.semget(0,1,0o1600);assert s>=0 and q>=0;l.shmctl(s,0,None);l.semctl(q,0,0);print('made')",
        "made",
    ),
    python(
        "POSIX message queues",
        "import ctypes,os\nl=ctypes.CDLL(None,use_errno=True);q=l.mq_open(b'/e2e',os.O_CREAT|os.O_RDWR,0o600,None);assert q>=0,os.strerror(ctypes.get_errno());l.mq_unlink(b'/e2e');print('made')",
        "made",
    ),
    python(
        "epoll, eventfd, timerfd and signalfd",
        "import select,os,ctypes,signal\nl=ctypes.CDLL(None);e=select.epoll();f=os.eventfd(1);t=l.timerfd_create(1,0);spec=(ctypes.c_long*4)(0,0,0,1000000);l.timerfd_settime(t,0,spec,None);s=l.signalfd(-1,(ctypes.c_ulong*16)(1<<9),0);signal.pthread_sigmask(0,[10]);[e.register(x,1) for x in(f,t,s)];os.kill(os.getpid(),10);import time;time.sleep(.05);print(len(e.poll(1)))",
        "3",
    ),
    python(
        "copy_file_range, sendfile and splice",
        "import os\nopen('a','w').write('x'*9999);a=os.open('a',0);b=os.open('b',66);n=os.copy_file_range(a,b,9999) or os.sendfile(b,a,0,9999);print(n)",
        "9999",
    ),
    python(
        "extended attributes of the user",
        "import os,errno\nopen('f','w')\ntry: os.setxattr('f','user.a',b'v');print('kept' if os.getxattr('f','user.a')==b'v' else 'lost')\nexcept OSError as e: print('kept' if e.errno==errno.ENOTSUP else e)",
        "kept",
    ),
    python(
        "locks by range and by file",
        "import fcntl,os\nf=open('l','w');fcntl.lockf(f,fcntl.LOCK_EX);fcntl.flock(f,fcntl.LOCK_EX);print('locked')",
        "locked",
    ),
    python(
        "scheduling and affinity",
        "import os\nos.sched_yield();a=os.sched_getaffinity(0);os.sched_setaffinity(0,a);os.nice(1);print(len(a)>0)",
        "True",
    ),
    python(
        "timers, alarms and clocks",
        "import signal,time\ngot=[];signal.signal(signal.SIGALRM,lambda *a:got.append(1));signal.setitimer(signal.ITIMER_REAL,.05);time.sleep(.2);time.monotonic();print(len(got))",
        "1",
    ),
    python(
        "process groups, sessions and waiting",
        "import os,signal\np=os.fork()\nif p==0: os.setsid();os.kill(os.getpid(),signal.SIGSTOP);os._exit(5)\n_,s=os.waitpid(p,os.WUNTRACED);os.killpg(p,signal.SIGCONT);_,s=os.waitpid(p,0);print(os.waitstatus_to_exitcode(s))",
        "5",
    ),
    python(
        "pidfd and waitid",
        "import os,signal,select\np=os.fork()\nif p==0: signal.pause()\nf=os.pidfd_open(p);signal.pidfd_send_signal(f,9);os.waitid(os.P_PIDFD,f,os.WEXITED);print('waited')",
        "waited",
    ),
    python(
        "what the machine looks like",
        "import os,platform\nopen('/proc/meminfo').read();open('/proc/cpuinfo').read();open('/proc/stat').read();open('/proc/self/status').read();open('/proc/self/maps').read();open('/proc/loadavg').read();print(os.cpu_count()>0)",
        "True",
    ),
    python(
        "random bytes and unique names",
        "import os,uuid\nprint(len(os.urandom(16))+len(str(uuid.uuid4())))",
        "52",
    ),
    python(
        "allocated and punched files",
        "import os,ctypes\nf=os.open('f',66);os.posix_fallocate(f,0,65536);os.pwrite(f,b'x',65535);os.fsync(f);os.ftruncate(f,10);print(os.fstat(f).st_size)",
        "10",
    ),
];

const fn python(name: &'static str, script: &'static str, says: &'static str) -> Program {
    Program { name, tools: &["python3"], runner: PYTHON3, script, says }
}
