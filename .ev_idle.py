import subprocess, sys, time, os
sys.path.insert(0, "/usr/lib/python3/dist-packages")
import trio
from moorage.wire.client import Client
S="/run/moorage/io.moorage.Machine"
async def main():
    leader=subprocess.Popen(["sleep","infinity"])
    async with await Client.connect(S) as c, await Client.connect(S) as s:
        await c.call("io.moorage.Machine.Register", {"name":"web","class":"vm","leader":{"pid":leader.pid}})
        async with s.call_more("io.moorage.Machine.Subscribe", {}) as replies:
            it=aiter(replies)
            for _ in range(2): print((await anext(it))["event"]["event"])
            pid=subprocess.run(["systemctl","show","-P","MainPID","moored"],capture_output=True,text=True).stdout.strip()
            # just after a feed of the watchdog (every 90 s)
            time.sleep(3)
            for i in range(3):
                subprocess.run(["timeout","60","strace","-f","-tt","-o",f"/tmp/st{i}","-p",pid],capture_output=True)
                t=open(f"/tmp/st{i}").read().splitlines()
                print(i, len(t), "lines"); print("\n".join(t[:12]))
    leader.kill()
trio.run(main)
